"""One interface: whatever a head reads, fit gives a classifier that answers as evaluate counts."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.test_stale import tiny
from tf_unravel import evaluate, heads, learners
from tf_unravel.adaptation.batchnorm import QueryNorm
from tf_unravel.adaptation.head import task_features
from tf_unravel.data.sampling.tasks import TaskSampler

SPLIT = make_split(size=8)
TASKS = {"ways": 3, "shots": 2, "queries": 3}


class Plain:
    """A head of the user's own, nothing inherited."""

    name = "plain"

    def __call__(self, support, support_labels, query, ways):
        return heads.Prototypes()(support, support_labels, query, ways)


class Products:
    """Another, by inner products alone and without a name."""

    def logits(self, inner, support_labels, ways):
        return heads.Ridge(3.0).logits(inner, support_labels, ways)


class Based(heads.Head):
    name = "based"

    def __call__(self, support, support_labels, query, ways):
        return tf.einsum("tqd,tsd,tsw->tqw", query, support, tf.one_hot(support_labels, ways))


class OnImages:
    """One that adapts the backbone, as far as anybody knows."""

    name, on_images, batchnorm, adaptation = "on_images", True, "in its own way", "a little"

    def __call__(self, backbone, support, support_labels, query, ways, first_task=0):
        return heads.Ridge().fit(backbone, support, support_labels, ways)(query)


class HalfAndHalf(QueryNorm):
    """A BatchNorm protocol of the user's own, that of half of the support set."""

    name, said = "half", "inductive (half of the support set)"

    def prepare(self, adapted, support):
        return adapted.state, support[::2]

    def logits(self, adapted, kept, query):
        network, weights, state = adapted
        return network.logits(weights, tf.concat([kept, query], axis=0), state)[0][len(kept):]


def maml(backbone):
    learner = learners.MAML(backbone, 3, inner_steps=2, inner_learning_rate=0.2, learn_rates=True)
    return learner.own_head()


HEADS = {
    "plain": (lambda _: Plain(), heads.Reads.FEATURES),
    "products": (lambda _: Products(), heads.Reads.INNER_PRODUCTS),
    "based": (lambda _: Based(), heads.Reads.FEATURES),
    "svm": (lambda _: heads.SVM(), heads.Reads.INNER_PRODUCTS),
    "on_images": (lambda _: OnImages(), heads.Reads.IMAGES),
    "fine_tune": (lambda _: heads.FineTune(3, 0.2, batch_size=4), heads.Reads.IMAGES),
    "one_by_one": (lambda _: heads.FineTune(3, 0.2, batchnorm="one_by_one"), heads.Reads.IMAGES),
    "own_protocol": (lambda _: heads.FineTune(3, 0.2, batchnorm=HalfAndHalf()), heads.Reads.IMAGES),
    "maml": (maml, heads.Reads.IMAGES),
}


@pytest.fixture(scope="module")
def backbone():
    model = tiny()
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(variable + 0.3 * np.abs(np.random.default_rng(0).normal(size=variable.shape)))
    return model


def drawn(num_tasks):
    sampler = TaskSampler(SPLIT, **TASKS)
    support, query = sampler.indices(0, num_tasks)
    labels = np.tile(sampler.labels[0], (num_tasks, 1))
    return SPLIT.images[support], labels, SPLIT.images[query], sampler.labels[1]


@pytest.mark.parametrize("name", HEADS)
def test_a_classifier_answers_as_evaluate_counts(name, backbone):
    make, reads = HEADS[name]
    own = make(backbone)
    head = heads.as_head("head", own)
    assert head.reads is reads and heads.reads_of(own) is reads
    support, labels, query, expected = drawn(4)
    classifier = head.fit(backbone, support, labels, 3)
    logits = classifier(query).numpy()
    assert logits.shape == (4, 9, 3) and np.ptp(logits) > 1e-3
    found = evaluate(backbone, own, SPLIT, num_tasks=4, **TASKS)
    np.testing.assert_allclose((logits.argmax(-1) == expected).mean(axis=1), found.per_task)
    assert (found.batchnorm, found.adaptation) == head.said_of(backbone)
    kept = classifier.in_variables()
    np.testing.assert_allclose(kept(query), logits, rtol=1e-4, atol=1e-5)
    if name != "maml":  # moments and rates of a learner belong to its weights
        np.testing.assert_allclose(classifier(query[:, ::-1]).numpy()[:, ::-1], logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "svm", "one_by_one", "maml"])
def test_a_classifier_in_a_graph_is_the_eager_one(name, backbone):
    head = heads.as_head("head", HEADS[name][0](backbone))
    support, labels, query, _ = drawn(2)
    expected = head.fit(backbone, support, labels, 3)(query)
    for tasks in (2, 1):  # several in a loop, one without
        graph = tf.function(lambda s, y, q: head.fit(backbone, s, y, 3)(q))
        found = graph(*(tf.constant(each[:tasks]) for each in (support, labels, query)))
        np.testing.assert_allclose(found, expected[:tasks], rtol=1e-4, atol=1e-5)


def test_fitting_adapts_once_and_leaves_the_backbone_alone(backbone):
    adapted = []

    class Watched(heads.FineTune):
        def adapt_each(self, *arguments, **options):
            adapted.append(1)
            return super().adapt_each(*arguments, **options)

    before = backbone.get_weights()
    support, labels, query, _ = drawn(2)
    classifier = Watched(2, 0.1).fit(backbone, support, labels, 3)
    classifier(query), classifier(query[:, :2])
    assert adapted == [1]
    for old, new in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["prototypes", "ridge", "svm", "linear"])
def test_a_classifier_keeps_weights_and_not_the_support_set(name, backbone, monkeypatch):
    head = heads.by_name[name]()
    support, labels, query, _ = drawn(2)
    classifier = head.fit(backbone, support, labels, 3)
    wanted, found = (task_features(backbone, x.astype(np.float32)) for x in (support, query))
    expected = head(wanted, labels, found, 3)
    monkeypatch.setattr(type(head), "solve", lambda *_: pytest.fail("solved again"))
    for each in (classifier, classifier.in_variables()):
        np.testing.assert_allclose(each(query), expected, rtol=1e-5, atol=1e-5)
    sizes = [tuple(value.shape) for value in tf.nest.flatten(classifier.kept)]
    assert all(3 in shape or shape[1] == 1 for shape in sizes) and not any(6 in shape for shape in sizes)


@pytest.mark.parametrize(("base", "settings"), [
    (heads.Prototypes, {}), (heads.Ridge, {"l2": 1e-3}), (heads.SVM, {}), (heads.Linear, {}),
])
def test_a_call_of_ones_own_counts_everywhere(base, settings, backbone):
    """Not the base's weights in a classifier, its closed form in calibration, or its inner products in `evaluate`."""

    class Reversed(base):
        def __call__(self, support, support_labels, query, ways):
            return -super().__call__(support, support_labels, query, ways)

    support, labels, query, _ = drawn(2)
    for fit in ("fit", "calibrated"):
        mine, theirs = (getattr(head, fit)(backbone, support, np.tile(labels[:1], (2, 1)), 3)(query)
                        for head in (Reversed(**settings), base(**settings)))
        if fit == "calibrated":
            mine, theirs = mine.logits, theirs.logits
        np.testing.assert_allclose(mine, -theirs, rtol=1e-4, atol=1e-4)
    mine, theirs = (evaluate(backbone, head, SPLIT, ways=3, shots=2, queries=4, num_tasks=30).per_task
                    for head in (Reversed(**settings), base(**settings)))
    assert not np.array_equal(mine, theirs)


def test_a_decision_of_ones_own_counts_in_evaluate(backbone):
    class Reversed(heads.Prototypes):
        def decide(self, solved, query, ways):
            return -super().decide(solved, query, ways)

    mine, theirs = (evaluate(backbone, head, SPLIT, ways=3, shots=2, queries=4, num_tasks=30).per_task
                    for head in (Reversed(), heads.Prototypes()))
    assert mine.mean() < 0.34 < theirs.mean()


def test_what_is_said_of_heads_of_ones_own(backbone):
    assert heads.settings_of(Products()) == "Products"
    assert heads.said_of(Plain(), backbone) == ("inductive (running statistics)", "")
    assert heads.said_of(OnImages(), backbone) == ("in its own way", "a little")
    said, _ = heads.FineTune(batchnorm=HalfAndHalf()).said_of(backbone)
    assert said == "inductive (half of the support set)"


@pytest.mark.parametrize("wrong", ["ridge", None, heads.Ridge, Plain, 5], ids=str)
def test_what_is_no_head_is_one_line(wrong):
    with pytest.raises(ValueError, match=r"^mine must be a head, such as heads.Ridge\(\).*Received: ") as caught:
        heads.as_head("mine", wrong)
    assert "\n" not in str(caught.value)


def test_a_label_out_of_range_is_refused_when_a_head_is_fitted(backbone):
    support, labels, _, _ = drawn(1)
    for head in (heads.Ridge(), heads.FineTune(1)):
        with pytest.raises(ValueError, match="support_labels must lie in 0..ways-1"):
            head.fit(backbone, support, labels + 1, 3)


def test_a_learned_classifier_has_its_ways(backbone):
    head = heads.FineTune(classifier=keras.layers.Dense(5))
    assert head.learned_ways == 5 and heads.FineTune().learned_ways is heads.Ridge().learned_ways is None
    heads.Ridge().check_ways(7)
    with pytest.raises(ValueError, match="learned for 5 ways"):
        head.check_ways(3)
