"""Evaluation: the same answers as a plain loop over tasks with NumPy and scikit-learn, in bounded memory."""

import gc
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import RidgeClassifier

from tf_unravel import backbones, data, heads, learners
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.tasks import TaskSampler
from tf_unravel.evaluation import Accuracy, evaluate, evaluate_heads, extract_features
from tf_unravel.evaluation import accuracy as accuracy_module
from tf_unravel.evaluation import features as features_module
from tf_unravel.evaluation.gram import GramProducts, SplitFeatures, TaskProducts, gram_is_worth_it, gram_matrix
from tf_unravel.heads.prototypes import Prototypes
from tf_unravel.heads.ridge import Ridge


def make_split(classes=8, images=30, name="toy/test"):
    """Images of one pixel, in mixed order; their features come from `make_features`."""
    class_ids = np.random.default_rng(1).permutation(np.repeat(np.arange(classes), images)).astype(np.int32)
    pixels = np.random.default_rng(2).integers(0, 256, (len(class_ids), 2, 2, 3), dtype=np.uint8)
    return ClassImages(pixels, class_ids, tuple(f"class{i}" for i in range(classes)), name)


def make_features(split, dimension=12, spread=0.7, offset=0.0, seed=0):
    random = np.random.default_rng(seed)
    means = spread * random.standard_normal((split.num_classes, dimension))
    noise = random.standard_normal((len(split), dimension))
    return (offset + means[split.class_ids] + noise).astype(np.float32)


class RidgeOnFeatures:
    """A head without `logits`: it has to be given the features themselves."""

    name = "ridge on features"

    def __call__(self, support, support_labels, query, ways):
        return Ridge(l2=1.0)(support, support_labels, query, ways)


def loop(features, split, predict, ways, shots, queries, num_tasks, seed):
    """Accuracy of each task by a plain loop; `predict(support, labels, query)` gives labels."""
    support, query = TaskSampler(split, ways, shots, queries, seed).indices(0, num_tasks)
    labels, expected = np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), queries)
    features = features.astype(np.float64)
    return np.array(
        [np.mean(predict(features[s], labels, features[q]) == expected) for s, q in zip(support, query, strict=True)]
    )


def nearest_centroid(support, labels, query):
    means = np.stack([support[labels == label].mean(axis=0) for label in np.unique(labels)])
    return np.array([np.argmin([np.sum((q - mean) ** 2) for mean in means]) for q in query])


def ridge(support, labels, query):
    return RidgeClassifier(alpha=1.0, fit_intercept=False).fit(support, labels).predict(query)


@pytest.mark.parametrize("gram_bytes", [1 << 30, 0], ids=["gram", "task by task"])
@pytest.mark.parametrize("ways, shots, queries", [(5, 1, 6), (5, 5, 6), (3, 3, 4), (8, 2, 3)])
def test_evaluation_equals_a_plain_loop_over_the_same_tasks(gram_bytes, ways, shots, queries):
    split = make_split()
    features = make_features(split)
    three = {"a": Prototypes(), "b": Ridge(l2=1.0), "c": RidgeOnFeatures()}
    found = evaluate_heads(features, three, split, ways, shots, queries, 300, seed=3, gram_bytes=gram_bytes)
    expected = loop(features, split, nearest_centroid, ways, shots, queries, 40, seed=3)
    np.testing.assert_array_equal(found["a"][shots].per_task[:40], expected)
    expected = loop(features, split, ridge, ways, shots, queries, 40, seed=3)
    np.testing.assert_array_equal(found["b"][shots].per_task[:40], expected)
    np.testing.assert_array_equal(found["c"][shots].per_task, found["b"][shots].per_task)
    assert 1.2 / ways < found["a"][shots].mean < 0.95


@pytest.mark.parametrize("name", sorted(set(heads.by_name) - {"fine_tune"}))  # it has tests of its own
def test_every_head_answers_alike_from_products_and_from_features(name):
    head = heads.by_name[name]()

    class OnFeatures:
        def __call__(self, *arguments):
            return head(*arguments)

    split = make_split()
    features = make_features(split, offset=1.0)
    both = {"products": head, "features": OnFeatures()}
    found = evaluate_heads(features, both, split, 4, 2, 5, 300, seed=0)
    same = found["products"][2].per_task == found["features"][2].per_task
    assert same.mean() > 0.99  # the rounding of a tie may fall either way


def test_last_block_and_number_of_tasks_change_nothing(monkeypatch):
    split = make_split()
    features = make_features(split)
    whole = evaluate(features, Prototypes(), split, num_tasks=2500, queries=5).per_task
    assert len(whole) == 2500
    few = evaluate(features, Prototypes(), split, num_tasks=7, queries=5)
    np.testing.assert_array_equal(few.per_task, whole[:7])
    monkeypatch.setattr("tf_unravel.evaluation.gram._MAX_TASKS_PER_BLOCK", 300)
    some = evaluate(features, Prototypes(), split, num_tasks=901, queries=5)
    np.testing.assert_array_equal(some.per_task, whole[:901])


def test_the_seed_decides_the_tasks_and_heads_share_them():
    split = make_split()
    features = make_features(split)
    together = evaluate_heads(features, [Prototypes(), Ridge()], split, shots=(1, 5), queries=5, num_tasks=50, seed=1)
    for head in (Prototypes(), Ridge()):
        for shots in (1, 5):
            alone = evaluate(features, head, split, shots=shots, queries=5, num_tasks=50, seed=1)
            np.testing.assert_array_equal(alone.per_task, together[head.name][shots].per_task)
    other = evaluate(features, Prototypes(), split, queries=5, num_tasks=50, seed=2)
    assert not np.array_equal(other.per_task, together["prototypes"][1].per_task)


def test_heads_are_compiled_once_and_never_stale():
    class Changing:
        sign = 1.0

        def logits(self, inner, support_labels, ways):
            return self.sign * Prototypes().logits(inner, support_labels, ways)

    split, head = make_split(), Changing()
    features = make_features(split)
    plain = evaluate(features, head, split, queries=5, num_tasks=300)
    head.sign = -1.0
    assert evaluate(features, head, split, queries=5, num_tasks=300).mean < plain.mean
    accuracy_module._compiled_heads.cache_clear()
    for _ in range(3):
        evaluate(features, Prototypes(), split, queries=5, num_tasks=300)
    assert accuracy_module._compiled_heads.cache_info().misses == 1
    evaluate(features, Prototypes(normalize=True), split, queries=5, num_tasks=300)
    assert accuracy_module._compiled_heads.cache_info().misses == 2


def test_interval_is_one_standard_error_and_its_1_96_fold():
    accuracy = Accuracy.of(np.array([0.2, 0.4, 0.9]), "inductive")
    # mean 0.5, deviations -0.3 -0.1 0.4: variance 0.26 / 2 = 0.13, over n = 3
    assert accuracy.mean == pytest.approx(0.5)
    assert accuracy.standard_error == pytest.approx((0.13 / 3) ** 0.5, rel=1e-12)
    assert accuracy.ci95 == pytest.approx(1.96 * (0.13 / 3) ** 0.5, rel=1e-12)
    assert accuracy.num_tasks == 3
    low, high = 50 - 100 * accuracy.ci95, 50 + 100 * accuracy.ci95
    assert str(accuracy) == (
        f"50.00 % +- 20.82 (one standard error; 95 %: {low:.2f} to {high:.2f}; 3 tasks; BatchNorm inductive)"
    )


@pytest.mark.parametrize("count, dimension", [(300, 7), (70, 33), (513, 3)])
def test_gram_matrix_is_the_centred_products_in_full(count, dimension, monkeypatch):
    monkeypatch.setattr("tf_unravel.evaluation.gram._PANEL_BYTES", 4 * count * 3)  # panels of three features
    monkeypatch.setattr("tf_unravel.evaluation.gram._MIRROR_TILE", 64)
    values = np.random.default_rng(0).standard_normal((count, dimension)).astype(np.float32) + 3
    features = SplitFeatures(values)
    centred = values.astype(np.float64) - values.astype(np.float64).mean(axis=0)
    gram = gram_matrix(features)
    np.testing.assert_allclose(gram, centred @ centred.T, atol=1e-5)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_allclose(features.norms, (centred**2).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("source", [GramProducts, TaskProducts])
def test_products_give_back_the_raw_ones(source):
    split = make_split()
    values = make_features(split, offset=2.0)
    support, query = TaskSampler(split, 5, 2, 3).indices(0, 20)
    products = source(SplitFeatures(values))(support, query)
    raw = values.astype(np.float64)
    shift, across = products.support_shift, products.query_shift
    expected = np.einsum("tsd,tud->tsu", raw[support], raw[support])
    np.testing.assert_allclose(products.support + shift[:, :, None] + shift[:, None, :], expected, rtol=1e-5, atol=1e-4)
    expected = np.einsum("tqd,tsd->tqs", raw[query], raw[support])
    np.testing.assert_allclose(products.cross + across[:, :, None] + shift[:, None, :], expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(products.query_norms + 2 * across, (raw[query] ** 2).sum(axis=2), rtol=1e-5)


@pytest.mark.parametrize("gram_bytes", [1 << 30, 0], ids=["gram", "task by task"])
def test_a_large_common_offset_costs_prototypes_no_precision(gram_bytes):
    """Without centring, float32 products of 12 * 3000^2 would swamp distances near 10."""
    split = make_split()
    features = make_features(split, offset=3000.0)
    found = evaluate_heads(features, [Prototypes()], split, 5, 2, 6, 1000, 0, gram_bytes)["prototypes"][2]
    np.testing.assert_array_equal(found.per_task[:60], loop(features, split, nearest_centroid, 5, 2, 6, 60, 0))


def test_the_gram_matrix_is_built_where_it_pays_and_fits():
    features = SplitFeatures(np.ones((240, 4), np.float32))
    sampler = TaskSampler(make_split(), 5, 1, 15)
    assert gram_is_worth_it(features, [sampler], num_tasks=2000, gram_bytes=1 << 30)
    assert not gram_is_worth_it(features, [sampler], num_tasks=2, gram_bytes=1 << 30)
    assert gram_is_worth_it(features, [sampler], num_tasks=2000, gram_bytes=4 * 240**2)
    assert not gram_is_worth_it(features, [sampler], num_tasks=2000, gram_bytes=4 * 240**2 - 1)


@pytest.mark.parametrize("gram_bytes", [1 << 30, 0], ids=["gram", "task by task"])
def test_memory_does_not_grow_with_the_number_of_tasks(gram_bytes, monkeypatch):
    monkeypatch.setattr("tf_unravel.evaluation.gram._MAX_TASKS_PER_BLOCK", 64)
    split = make_split()
    features = make_features(split)
    support, _ = TaskSampler(split, 5, 1, 15).indices(0, 1)

    def peak(num_tasks):
        gc.collect()
        tracemalloc.start()
        evaluate_heads(features, [Prototypes()], split, 5, 1, 15, num_tasks, 0, gram_bytes)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(640)
    few, many = peak(2560), peak(20480)
    assert many - few < 17920 * 8 * 6  # a few numbers per task; its products alone would be 17,920 x 1,600 bytes


def make_backbone():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((2, 2, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(6),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
        ]
    )
    model.layers[2].set_weights([np.full(6, 2.0), np.full(6, 1.0), np.arange(6.0), np.full(6, 4.0)])
    return model


def test_features_use_running_statistics_and_no_dropout():
    model, images = make_backbone(), make_split().images
    kernel, bias = model.layers[1].get_weights()
    flat = images.reshape(len(images), -1).astype(np.float64) @ kernel + bias
    expected = 2.0 * (flat - np.arange(6.0)) / np.sqrt(4.0 + 1e-3) + 1.0
    for batch_size in (256, 7):
        features = extract_features(model, images, batch_size)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-3)


def test_a_backbone_and_its_features_give_the_same_accuracy():
    split, model = make_split(), make_backbone()
    by_model = evaluate(model, Prototypes(), split, queries=5, num_tasks=40)
    by_features = evaluate(extract_features(model, split.images), Prototypes(), split, queries=5, num_tasks=40)
    np.testing.assert_array_equal(by_model.per_task, by_features.per_task)
    assert by_model.batchnorm == "inductive (running statistics)"
    note = evaluate_heads(np.zeros((240, 2)), [Prototypes()], split, num_tasks=2, shots=1, batchnorm="transductive")
    assert "BatchNorm transductive" in str(note["prototypes"][1])


def test_new_weights_are_seen_without_a_new_trace():
    split, model = make_split(), make_backbone()
    before = extract_features(model, split.images)
    model.layers[1].set_weights([2 * weights for weights in model.layers[1].get_weights()])
    assert not np.allclose(extract_features(model, split.images), before)
    assert features_module._compiled(model) is features_module._compiled(model)
    assert features_module._compiled(model).experimental_get_tracing_count() == 1


def test_evaluated_backbones_are_not_kept_alive():
    model = make_backbone()
    extract_features(model, make_split().images)
    kept = len(features_module._forwards)
    del model
    gc.collect()
    assert len(features_module._forwards) < kept


def test_half_precision_features_come_out_as_float32():
    model = keras.Sequential([keras.layers.Input((2, 2, 3)), keras.layers.Flatten(dtype="mixed_float16")])
    assert extract_features(model, make_split().images).dtype == np.float32


class NotFinite:
    name = "broken"

    def logits(self, kernels, support_labels, ways):
        return tf.fill((*kernels.cross.shape[:2], ways), float("nan"))


def spoilt(value):
    features = make_features(make_split())
    features[17, 3] = value
    return features


ERRORS = [
    (spoilt(np.nan), Prototypes(), {}, "NaN or infinity for image 17"),
    (spoilt(np.inf), Prototypes(), {}, "NaN or infinity for image 17"),
    (spoilt(1e20), Prototypes(), {}, "too large for float32"),
    (np.zeros((5, 3)), Prototypes(), {}, "shape (5, 3)"),
    (make_features(make_split()), NotFinite(), {}, "from the head"),
    (make_features(make_split()), Prototypes(), {"ways": 20}, "ways=20, but split 'toy/test' has 8 classes"),
    (make_features(make_split()), Prototypes(), {"num_tasks": 1}, "num_tasks=1"),
]


@pytest.mark.parametrize("features, head, options, message", ERRORS, ids=[message for *_, message in ERRORS])
def test_errors_show_what_was_received(features, head, options, message):
    with pytest.raises(ValueError) as error:
        evaluate(features, head, make_split(), **{"num_tasks": 20, **options})
    assert message in str(error.value)


def test_a_backbone_must_give_rows_of_finite_features():
    images = make_split().images
    with pytest.raises(ValueError, match=r"\[B, D\]. Received: an output \(240, 2, 2, 3\)"):
        extract_features(keras.Sequential([keras.layers.Input((2, 2, 3)), keras.layers.ReLU()]), images)
    model = make_backbone()
    model.layers[1].set_weights([np.full((12, 6), np.nan), np.zeros(6)])
    with pytest.raises(ValueError, match="image 0"):
        extract_features(model, images)


NO_ARGUMENTS = [
    ({"split": (np.zeros((8, 2, 2, 3), np.uint8), np.arange(8))}, "A split must be ClassImages.*Received: tuple"),
    ({"split": tf.data.Dataset.range(3)}, "A split must be ClassImages.*Received: .*Dataset"),
    ({"split": "test"}, "A split must be ClassImages.*Received: 'test'"),
    ({"split": None}, "A split must be ClassImages.*Received: NoneType"),
    ({"backbone": "conv4"}, r"keras.Model, such as backbones.conv4\(\).*Received: 'conv4'"),
    ({"backbone": backbones.conv4}, r"keras.Model, such as backbones.conv4\(\).*Received: 'conv4'"),
    ({"backbone": keras.Model}, "keras.Model.*Received: .*Functional|keras.Model.*Received: 'Model'"),
    ({"backbone": None}, "keras.Model.*Received: None"),
    ({"head": Ridge}, r"head must be a head, such as heads.Ridge\(\).*Received: 'Ridge'"),
    ({"head": heads.FineTune}, r"head must be a head, such as heads.Ridge\(\).*Received: 'FineTune'"),
    ({"head": "ridge"}, r"head must be a head, such as heads.Ridge\(\).*Received: 'ridge'"),
    ({"head": None}, r"head must be a head, such as heads.Ridge\(\).*Received: None"),
    ({"head": [Ridge()]}, "evaluate_heads takes several. Received: list"),
    ({"head": {"ridge": Ridge()}}, "evaluate_heads takes several. Received: dict"),
]


@pytest.mark.parametrize("wrong, message", NO_ARGUMENTS, ids=[message[-24:] for _, message in NO_ARGUMENTS])
def test_what_is_no_argument_is_one_line(wrong, message):
    split = make_split()
    arguments = {"backbone": make_features(split), "head": Prototypes(), "split": split, "num_tasks": 20, **wrong}
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong, message", [
    (Ridge(), "heads must be a dict, name -> head, or a list of heads. Received: Ridge"),
    ("ridge", "heads must be a dict, name -> head, or a list of heads. Received: 'ridge'"),
    ([Ridge], r"head must be a head, such as heads.Ridge\(\).*Received: 'Ridge'"),
    ([RidgeOnFeatures(), lambda *_: None], "need different names; give a dict instead. Received: .*None"),
], ids=["one", "name", "class", "nameless"])  # fmt: skip
def test_heads_that_are_none_are_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_heads(make_features(make_split()), wrong, make_split(), num_tasks=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", [Ridge(), heads.FineTune()], ids=["ridge", "fine_tune"])
def test_a_learner_is_no_backbone(head):
    """Its call gives the logits of the training's classes: few-shot accuracies of them would be another network's."""
    learner = learners.Classical(make_backbone(), 8)
    with pytest.raises(ValueError, match="give its `backbone`.*Received: Classical"):
        evaluate(learner, head, make_split(), shots=1, num_tasks=2)


def test_batches_are_not_drawn_of_what_is_no_split():
    for draw in (data.episodes, data.class_pairs, data.steps_per_epoch):
        with pytest.raises(ValueError, match="A split must be ClassImages.*Received: tuple"):
            draw((np.zeros((8, 2, 2, 3), np.uint8), np.arange(8)))


def test_heads_in_a_list_need_different_names():
    with pytest.raises(ValueError, match=r"\['ridge', 'ridge'\]"):
        evaluate_heads(make_features(make_split()), [Ridge(), Ridge(l2=1.0)], make_split())


@pytest.mark.parametrize("head", [Prototypes(), RidgeOnFeatures()])
def test_classes_taken_for_each_other_are_counted_where_they_met(head, monkeypatch):
    """Against loops over tasks and queries; the tasks do not fill the last block."""
    split = make_split(classes=6)
    features = make_features(split)
    monkeypatch.setattr(accuracy_module, "feature_tasks_per_block", lambda *_: 16)
    monkeypatch.setattr(TaskProducts, "tasks_per_block", lambda *_: 16)
    monkeypatch.setattr(GramProducts, "tasks_per_block", lambda *_: 16)
    found = evaluate_heads(features, {"head": head}, split, 3, (2,), 4, 70, seed=5)["head"][2].confusion
    answered, met = np.zeros((2, 6, 6), int)
    for support, query in zip(*TaskSampler(split, 3, 2, 4, 5).indices(0, 70), strict=True):
        classes = split.class_ids[support[::2]]
        labels = np.repeat(np.arange(3), 2).astype(np.int32)
        logits = head(features[support][None], labels[None], features[query][None], 3)
        for image, answer in zip(query, np.argmax(logits[0], axis=-1), strict=True):
            answered[split.class_ids[image], classes[answer]] += 1
            for other in classes:
                met[split.class_ids[image], other] += 1
    np.testing.assert_array_equal(found.answered, answered)
    np.testing.assert_array_equal(found.met, met)
    assert answered.sum() == 70 * 12 and met.min() > 0
    rates = {(a, b): (answered[a, b] + answered[b, a]) / (met[a, b] + met[b, a])
             for b in range(6) for a in range(b) if met[a, b] >= 10 * 4}
    expected = sorted((rate for rate in rates.values() if rate), reverse=True)[:4]
    assert len(rates) < 15 and [rate for _, _, rate in found.most_mixed_up(4)] == pytest.approx(expected)
    assert all(rate == rates[a, b] for a, b, rate in found.most_mixed_up())


def test_classes_of_a_large_split_are_not_counted():
    split = make_split(classes=201, images=3)
    assert evaluate(make_features(split), Prototypes(), split, 2, 1, 2, 4).confusion is None
