"""Distances travelled: one step by hand, a copy trained by hand, the tasks of `evaluate`, the figure."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import no_backbone, small_network
from tf_unravel import data, evaluate, heads, learners
from tf_unravel.analysis import distance_travelled, draw_distances
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.tasks import TaskSampler
from tf_unravel.learners.reptile import clustering_gradient


def numbers_split():
    """Images of two numbers, three classes of four: small enough for arithmetic."""
    random = np.random.default_rng(0)
    images = random.integers(0, 5, size=(12, 2, 1, 1)).astype(np.uint8)
    return ClassImages(images, np.repeat([0, 1, 2], 4), ("a", "b", "c"), "numbers")


def test_one_step_by_hand():
    """Softmax regression: gradient X^T (p - y) / S, an SGD step, and the columns' moves over their norms."""
    split, rate = numbers_split(), 0.5
    backbone = no_backbone(2)
    classifier = keras.layers.Dense(2)
    classifier.build((None, 2))
    kernel = np.array([[0.5, -1.0], [0.25, 2.0]], np.float32)
    classifier.set_weights([kernel, np.array([0.1, -0.2], np.float32)])
    head = heads.FineTune(steps=1, learning_rate=rate, classifier=classifier)
    found = distance_travelled(backbone, head, split, ways=2, shots=2, num_tasks=5, seed=4, queries=1)
    support, _ = TaskSampler(split, 2, 2, 1, seed=4).indices(0, 5)
    assert found.dtype == np.float64 and found.shape == (5,)
    for task in range(5):
        x = split.images[support[task]].reshape(4, 2).astype(np.float64)
        logits = x @ kernel + [0.1, -0.2]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradient = x.T @ (p - np.array([[1, 0], [1, 0], [0, 1], [0, 1]])) / 4
        squared = sum(np.sum((rate * gradient[:, f]) ** 2) / np.sum(kernel[:, f] ** 2) for f in (0, 1))  # no bias
        assert found[task] == pytest.approx(np.sqrt(squared), rel=1e-5)


def test_a_network_travels_as_a_copy_trained_by_hand():
    split, backbone = make_split(), small_network()
    before = backbone.get_weights()
    classifier = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=1))
    classifier.build((None, backbone.output_shape[-1]))
    head = heads.FineTune(steps=3, learning_rate=0.05, classifier=classifier)
    found = distance_travelled(backbone, head, split, ways=3, shots=2, num_tasks=2, seed=5, queries=4)
    tasks = data.episodes(split, ways=3, shots=2, queries=4, num_tasks=2, seed=5)
    for distance, (images, labels, _, _) in zip(found, tasks, strict=True):
        copy = keras.models.clone_model(backbone)
        copy.set_weights(before)
        kernel, bias = (tf.Variable(v) for v in classifier.get_weights())
        variables = [*copy.trainable_variables, kernel, bias]
        start = [v.numpy() for v in variables]
        for _ in range(3):
            with tf.GradientTape() as tape:
                logits = copy(images, training=True) @ kernel + bias
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign(variable - 0.05 * gradient)
        squared = 0.0
        for variable, origin in zip(variables, start, strict=True):
            if origin.ndim < 2:
                continue
            moved = variable.numpy().astype(np.float64) - origin
            for f in range(origin.shape[-1]):
                squared += np.sum(moved[..., f] ** 2) / np.sum(origin[..., f].astype(np.float64) ** 2)
        assert distance == pytest.approx(np.sqrt(squared), rel=1e-3)
    for a, b in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_weights_as_weight_clustering_pulls():
    """Where the penalty's gradient is not zero the distance grows, and nowhere else."""
    learner = learners.Reptile(small_network(), ways=3)
    network = learner.network
    start = [tf.constant(np.random.default_rng(0).normal(size=w.shape), tf.float32) for w in network.weights]
    from tf_unravel.adaptation.fine_tune import Start
    from tf_unravel.analysis.distance_travelled import _travelled

    pulled = [bool(tf.reduce_any(g != 0)) for g in clustering_gradient([w + 1.0 for w in start], start)]
    moves = []
    for place in range(len(start)):
        weights = [w + 1.0 if i == place else w for i, w in enumerate(start)]
        moves.append(float(_travelled(network, Start(start, network.state, None), weights)) > 0)
    assert moves == pulled and sum(pulled) == 5  # four convolutions and the classifier


def test_a_classifier_that_starts_at_zero_does_not_count():
    split = numbers_split()
    found = distance_travelled(no_backbone(2), heads.FineTune(steps=3), split, 2, 1, 3, queries=1)
    np.testing.assert_array_equal(found, [0, 0, 0])


def test_no_steps_no_distance_and_blocks_do_not_matter(monkeypatch):
    split, learner = make_split(), learners.Reptile(small_network(), ways=3, evaluation_steps=3, evaluation_batch=2)
    still = heads.FineTune(steps=0, classifier=learner.classifier)
    np.testing.assert_array_equal(distance_travelled(learner.backbone, still, split, 3, 1, 3), [0, 0, 0])
    arguments = (learner.backbone, learner.own_head(), split, 3, 2)
    whole = distance_travelled(*arguments, num_tasks=5, seed=1)
    assert (whole > 0).all() and len(set(whole)) == 5
    import sys

    monkeypatch.setattr(sys.modules[distance_travelled.__module__], "IMAGE_TASKS_PER_BLOCK", 2)
    np.testing.assert_allclose(distance_travelled(*arguments, num_tasks=5, seed=1), whole, rtol=1e-4)
    assert not np.allclose(distance_travelled(*arguments, num_tasks=5, seed=2), whole, rtol=1e-2)


def test_evaluation_adapts_to_the_same_tasks(monkeypatch):
    """The support images that `evaluate` hands to the head are those that the distance is measured on."""
    split, backbone, seen = make_split(), small_network(), []

    class Watched(heads.FineTune):
        def adapt_each(self, backbone, ways, tasks, then, first_task=0):
            seen.append((np.asarray(tasks[0]), np.asarray(tasks[1]), int(first_task)))
            return super().adapt_each(backbone, ways, tasks, then, first_task)

    head = Watched(steps=1)
    evaluate(backbone, head, split, ways=3, shots=2, queries=5, num_tasks=18, seed=7)
    evaluated, seen[:] = list(seen), []
    distance_travelled(backbone, head, split, ways=3, shots=2, num_tasks=18, seed=7, queries=5)
    assert len(seen) == len(evaluated) == 2
    for ours, theirs in zip(seen, evaluated, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_figure_marks_medians(tmp_path):
    random = np.random.default_rng(0)
    values = {shots: {"Reptile": random.gamma(40, 0.1, 301) + shots, "Weight clustering": random.gamma(30, 0.1, 200)}
              for shots in (1, 5)}
    figure = draw_distances(values, bins=20)
    assert [panel.get_title() for panel in figure.axes] == ["1-shot tasks", "5-shot tasks"]
    for panel, networks in zip(figure.axes, values.values(), strict=True):
        medians = [lines.get_segments()[0][0][0] for lines in panel.collections]
        np.testing.assert_allclose(medians, [np.median(travelled) for travelled in networks.values()])
        assert len({str(lines.get_linestyle()) for lines in panel.collections}) == 2
        labels = [text.get_text() for text in panel.get_legend().get_texts()]
        assert labels == [f"{name} (median {np.median(t):.2f})" for name, t in networks.items()]
        hatched = [patch for patch in panel.patches if patch.get_hatch()]
        assert len({patch.get_hatch() for patch in hatched}) == 2
        for patch, travelled in zip(hatched, networks.values(), strict=True):
            outline = patch.get_xy()
            edges = np.unique(outline[:, 0])
            assert len(edges) == 21
            counts = [np.sum((travelled >= low) & (travelled < high))
                      for low, high in zip(edges[1:-2], edges[2:-1], strict=True)]  # inner bins
            heights = outline[2:-1:2, 1][: len(edges) - 1][1:-1]
            np.testing.assert_allclose(np.sort(heights)[-3:], np.sort(counts)[-3:] / len(travelled))
    figure.savefig(tmp_path / "figure3.png")
    assert (tmp_path / "figure3.png").stat().st_size > 5000
    draw_distances({1: {"steady": np.full(5, 0.3), "still": np.zeros(4)}}).savefig(tmp_path / "steady.png")


TOY = make_split(num_classes=3, per_class=4)
ERRORS = [
    (lambda: distance_travelled(np.zeros((12, 3)), heads.FineTune(), TOY, 2, 1, 2), "type ndarray"),
    (lambda: distance_travelled(small_network(), heads.Ridge(), TOY, 2, 1, 2), "type Ridge"),
    (lambda: distance_travelled(small_network(), heads.FineTune(), TOY, 2, 1, 0), "num_tasks=0"),
    (lambda: distance_travelled(small_network(), heads.FineTune(), TOY, 4, 1, 2), "ways=4"),
    (lambda: distance_travelled(small_network(), heads.FineTune(3, 1e38), TOY, 2, 1, 2, queries=1), "nan at task 0"),
    (lambda: draw_distances({}), "no distances"),
    (lambda: draw_distances({1: {}}), "no distances"),
    (lambda: draw_distances({1: {"a": np.array([1.0, np.nan])}}), "a at 1 shots"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors_show_what_was_received(call, message):
    with pytest.raises(ValueError, match="Received") as error:
        call()
    assert message in str(error.value)
