"""Samplers: exact counts within an epoch, purity in (seed, step), uniformity of tasks, clear errors."""

import collections
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.tasks import Episode, TaskSampler, class_pairs, episodes, pair_plan, steps_per_epoch


def make_split(sizes, name="toy/train", shuffled=True):
    """Images of 2x2 whose pixels spell their own index, so that a wrong gather shows."""
    class_ids = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    if shuffled:
        class_ids = np.random.default_rng(0).permutation(class_ids)
    numbers = np.arange(len(class_ids))
    images = np.stack([numbers % 256, numbers // 256], axis=1).astype(np.uint8).reshape(-1, 1, 2, 1)
    return ClassImages(images, class_ids, tuple(f"class{i}" for i in range(len(sizes))), name)


def numbers_in(images):
    images = np.asarray(images).astype(int)
    return images[..., 0, 0, 0] + 256 * images[..., 0, 1, 0]


PLANS = [  # sizes, batch_size: even and odd classes, batches that end at, before and after a round
    ([6] * 4, 8),
    ([6] * 7, 4),
    ([6] * 7, 10),
    ([6] * 7, 14),
    ([5] * 7, 10),
    ([2] * 5, 6),
    ([20] * 3, 10),
    ([21] * 3, 8),
    ([600] * 64, 128),
    ([600] * 20, 128),
]


@pytest.mark.parametrize("sizes, batch_size", PLANS)
def test_an_epoch_visits_every_class_and_image_equally_often(sizes, batch_size):
    split = make_split(sizes)
    for epoch in range(3):
        plan = pair_plan(split, batch_size, seed=3, epoch=epoch)
        assert plan.shape == (steps_per_epoch(split, batch_size), batch_size)
        images = np.bincount(plan.ravel(), minlength=len(split))
        assert images.min() >= 1 and images.max() - images.min() <= 1
        classes = np.bincount(split.class_ids[plan[:, ::2]].ravel(), minlength=split.num_classes)
        assert classes.max() - classes.min() <= 1


@pytest.mark.parametrize("sizes, batch_size", PLANS + [([4, 9, 30, 2], 6), ([4, 9, 30, 7], 14), ([3, 2, 5, 7, 4], 10)])
def test_batches_hold_pairs_of_different_images_of_one_class(sizes, batch_size):
    split = make_split(sizes)
    plan = pair_plan(split, batch_size, seed=5, epoch=1)
    pairs = plan.reshape(len(plan), -1, 2)
    np.testing.assert_array_equal(split.class_ids[pairs[:, :, 0]], split.class_ids[pairs[:, :, 1]])
    most = math.ceil(batch_size / 2 / len(sizes))
    for batch in pairs:
        visits = np.bincount(split.class_ids[batch[:, 0]], minlength=len(sizes))
        assert visits.max() <= most
        if most > 1:
            assert visits.min() >= batch_size // 2 // len(sizes)
        if 2 * most <= min(sizes):
            assert len(np.unique(batch)) == batch_size
    assert (pairs[:, :, 0] != pairs[:, :, 1]).all()


def test_unequal_classes_stay_balanced_and_even_within_each_class():
    split = make_split([4, 9, 30])
    plan = pair_plan(split, 6, seed=0, epoch=0)
    images = np.bincount(plan.ravel(), minlength=len(split))
    classes = np.bincount(split.class_ids[plan].ravel())
    assert len(plan) == 15 and (classes == 30).all()
    for class_id, size in enumerate([4, 9, 30]):
        of_class = images[split.class_ids == class_id]
        assert of_class.min() == 30 // size and of_class.max() - of_class.min() <= 1


def test_orders_are_fresh_each_round_epoch_and_seed_and_uniform():
    split = make_split([4] * 3)
    firsts, orders, partners = (collections.Counter() for _ in range(3))
    for epoch in range(1500):
        plan = pair_plan(split, 6, seed=1, epoch=epoch)  # two rounds of three classes, a round is a batch
        for batch in plan:
            orders[tuple(split.class_ids[batch[::2]])] += 1
        members = np.flatnonzero(split.class_ids == 0)
        sequence = [image for image in plan.ravel() if image in members]
        firsts[sequence[0]] += 1
        partners[frozenset(sequence[:2])] += 1
    for counter, cells in ((orders, 6), (firsts, 4), (partners, 6)):
        assert len(counter) == cells
        assert chi_square(counter.values()) < 30  # 5 degrees of freedom: one in 10^5
    assert not np.array_equal(pair_plan(split, 6, 1, 0), pair_plan(split, 6, 2, 0))


def test_a_round_cut_by_a_batch_is_still_uniform():
    split = make_split([4] * 5)
    places, held = np.zeros((10, 5)), np.zeros(10)
    for epoch in range(3000):
        classes = split.class_ids[pair_plan(split, 6, seed=7, epoch=epoch)[:, ::2]].ravel()[:10]  # batches of 3 pairs
        places[np.arange(10), classes] += 1
        held += np.isin(classes, classes[3:5])  # the second batch begins with these two and ends with place 5
    for place in places:
        assert chi_square(place) < 33  # 4 degrees of freedom: one in 10^6
    assert held[5] == 0
    np.testing.assert_allclose(held[6:] / 3000, 0.5, atol=0.05)  # two of the four that are left; five sigma


def chi_square(counts):
    counts = np.array(list(counts), float)
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_class_pairs_is_the_plan_and_resumes_in_the_middle():
    split = make_split([7] * 5)
    steps = steps_per_epoch(split, 6)
    plan = np.concatenate([pair_plan(split, 6, seed=2, epoch=epoch) for epoch in range(3)])
    whole = [(numbers_in(x), np.asarray(y)) for x, y in class_pairs(split, 6, seed=2, num_steps=3 * steps)]
    assert len(whole) == 3 * steps
    for (numbers, ids), indices in zip(whole, plan, strict=True):
        np.testing.assert_array_equal(numbers, indices)
        np.testing.assert_array_equal(ids, split.class_ids[indices])
    for first in (1, steps - 1, steps, 2 * steps + 3):
        resumed = class_pairs(split, 6, seed=2, first_step=first).take(3)
        for (x, y), (numbers, ids) in zip(resumed, whole[first:], strict=False):
            np.testing.assert_array_equal(numbers_in(x), numbers)
            np.testing.assert_array_equal(y, ids)


def test_class_pairs_has_static_shapes_no_end_and_keeps_types():
    images, ids = class_pairs(make_split([4] * 4), 8).element_spec
    assert images == tf.TensorSpec((8, 1, 2, 1), tf.uint8) and ids == tf.TensorSpec((8,), tf.int32)
    assert class_pairs(make_split([4] * 4), 8).cardinality() == tf.data.INFINITE_CARDINALITY
    assert class_pairs(make_split([4] * 4), 8, num_steps=5).cardinality() == 5


def test_a_late_step_costs_no_replay():
    split = make_split([600] * 64)
    far = next(iter(class_pairs(split, 128, first_step=10**12)))  # would take years if it were replayed
    assert far[0].shape == (128, 1, 2, 1)


def test_samplers_read_a_memmap(tmp_path):
    split = make_split([6] * 5)
    np.save(tmp_path / "images.npy", split.images)
    mapped = ClassImages(np.load(tmp_path / "images.npy", mmap_mode="r"), split.class_ids, split.class_names, "m/train")
    for x, y in zip(class_pairs(split, 4, num_steps=4), class_pairs(mapped, 4, num_steps=4), strict=True):
        np.testing.assert_array_equal(x[0], y[0])
    for x, y in zip(episodes(split, 3, 1, 2, 4), episodes(mapped, 3, 1, 2, 4), strict=True):
        np.testing.assert_array_equal(x.query_images, y.query_images)


TASKS = [([8] * 6, 5, 1, 3), ([5, 20, 9, 6, 31], 5, 2, 3), ([20] * 30, 20, 5, 15)]


@pytest.mark.parametrize("sizes, ways, shots, queries", TASKS)
def test_tasks_draw_without_replacement_and_stay_in_their_classes(sizes, ways, shots, queries):
    split = make_split(sizes)
    support, query = TaskSampler(split, ways, shots, queries, seed=4).indices(1000, 300)  # over the edge of a block
    assert support.shape == (300, ways * shots) and query.shape == (300, ways * queries)
    for s, q in zip(support, query, strict=True):
        assert len(np.unique(np.concatenate([s, q]))) == ways * (shots + queries)
        classes = split.class_ids[s].reshape(ways, shots)
        assert len(np.unique(classes[:, 0])) == ways
        assert (classes == classes[:, :1]).all()
        assert (split.class_ids[q].reshape(ways, queries) == classes[:, :1]).all()


def test_tasks_are_uniform_over_ordered_classes_and_images():
    split = make_split([3, 4, 5], shuffled=False)
    support, query = TaskSampler(split, 2, 1, 2, seed=0).indices(0, 48000)
    classes = collections.Counter(map(tuple, split.class_ids[support]))
    assert len(classes) == 6 and chi_square(classes.values()) < 30
    first = np.concatenate([query[:, :2], support[:, :1]], axis=1)  # of the first class: ordered triples
    of_class = first[split.class_ids[first[:, 0]] == 1] - 3
    triples = collections.Counter(map(tuple, of_class.tolist()))
    assert set(triples) == set(itertools.permutations(range(4), 3))
    assert chi_square(triples.values()) < 70  # 23 degrees of freedom: one in 10^6


def test_a_task_depends_on_seed_and_number_alone():
    split = make_split([30] * 8)
    support, query = TaskSampler(split, 5, 1, 4, seed=9).indices(0, 3000)
    for first, count in ((0, 1), (1, 1), (1020, 10), (1023, 1500), (2999, 1)):
        again = TaskSampler(split, 5, 1, 4, seed=9).indices(first, count)
        np.testing.assert_array_equal(again[0], support[first : first + count])
        np.testing.assert_array_equal(again[1], query[first : first + count])
    assert not np.array_equal(TaskSampler(split, 5, 1, 4, seed=10).indices(0, 10)[0], support[:10])
    assert len(np.unique(np.concatenate([support, query], 1), axis=0)) == 3000


def test_more_shots_keep_classes_queries_and_support():
    split = make_split([30] * 8)
    one, one_query = TaskSampler(split, 5, 1, 4, seed=9).indices(5, 100)
    five, five_query = TaskSampler(split, 5, 5, 4, seed=9).indices(5, 100)
    np.testing.assert_array_equal(one_query, five_query)
    np.testing.assert_array_equal(one, five[:, ::5])


def test_the_stream_of_tasks_does_not_change():
    """Tasks are part of every published number: the same seed must give them in every version."""
    support, query = TaskSampler(make_split([10] * 6, shuffled=False), 3, 1, 2, seed=0).indices(7, 1)
    assert support.tolist() == [[38, 19, 56]] and query.tolist() == [[33, 32, 13, 11, 53, 57]]
    plan = pair_plan(make_split([3] * 3, shuffled=False), 4, seed=0, epoch=0)
    assert plan.tolist() == [[6, 8, 4, 5], [2, 1, 3, 4], [7, 6, 0, 2]]


@pytest.mark.parametrize("tasks_per_batch", [None, 1, 4])
def test_episodes_hold_the_images_of_their_tasks(tasks_per_batch):
    split = make_split([12] * 6)
    found = list(episodes(split, 4, 2, 3, num_tasks=8, seed=6, first_task=1021, tasks_per_batch=tasks_per_batch))
    support, query = TaskSampler(split, 4, 2, 3, seed=6).indices(1021, 8)
    assert len(found) == 8 // (tasks_per_batch or 1) and all(isinstance(episode, Episode) for episode in found)
    join = np.stack if tasks_per_batch is None else np.concatenate
    parts = [join([episode[i] for episode in found]) for i in range(4)]
    np.testing.assert_array_equal(numbers_in(parts[0]), support)
    np.testing.assert_array_equal(numbers_in(parts[2]), query)
    np.testing.assert_array_equal(parts[1], np.tile([0, 0, 1, 1, 2, 2, 3, 3], (8, 1)))
    np.testing.assert_array_equal(parts[3], np.tile([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], (8, 1)))


def test_episodes_have_static_shapes_and_a_length():
    split = make_split([12] * 6)
    spec = episodes(split, 3, 2, 4, num_tasks=7).element_spec
    assert spec.support_images == tf.TensorSpec((6, 1, 2, 1), tf.uint8)
    assert spec.query_labels == tf.TensorSpec((12,), tf.int32)
    assert episodes(split, 3, 2, 4, num_tasks=70).cardinality() == 70
    assert episodes(split, 3, 2, 4, num_tasks=8, tasks_per_batch=2).cardinality() == 4
    assert episodes(split, 3, 2, 4).take(3).cardinality() in (3, tf.data.UNKNOWN_CARDINALITY)
    assert len(list(episodes(split, 3, 2, 4).take(3))) == 3


ERRORS = [
    (lambda: episodes(make_split([30] * 16, "val"), ways=20), "Received: ways=20, but split 'val' has 16 classes."),
    (lambda: episodes(make_split([30] * 16), ways=20), "than its split has classes; lower ways."),
    (lambda: episodes(make_split([30, 9, 30]), ways=2, shots=5, queries=15), "than there are; lower shots or queries."),
    (lambda: episodes(make_split([30, 9, 30]), ways=2, shots=5, queries=15), "class 'class1' of split 'toy/train' has"),
    (lambda: episodes(make_split([30] * 3), ways=1), "ways=1"),
    (lambda: episodes(make_split([30] * 3), ways=2, shots=0), "shots=0"),
    (lambda: episodes(make_split([30] * 3), ways=2, num_tasks=7, tasks_per_batch=2), "tasks_per_batch=2, num_tasks=7"),
    (lambda: episodes(make_split([30] * 3), ways=2, seed=-1), "seed=-1"),
    (lambda: class_pairs(make_split([30] * 3), batch_size=7), "batch_size=7"),
    (lambda: class_pairs(make_split([30, 1]), batch_size=4), "1 of class 'class1' in split 'toy/train'"),
    (lambda: class_pairs(make_split([30] * 3), batch_size=4, first_step=-2), "first_step=-2"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors_show_what_was_received(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
