"""Reptile's batches: what is drawn, in which order, and from which numbers alone."""

import numpy as np
import pytest

from tests.conftest import make_split
from tf_unravel import data
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling import batches


def numbered_split(num_classes=6, per_class=20):
    """Images that carry their own number, so that a batch says what was drawn."""
    count = num_classes * per_class
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    ids = np.repeat(np.arange(num_classes), per_class)
    return ClassImages(images, ids, tuple("abcdef"[:num_classes]), "numbered")


def drawn(num_steps=2, **options):
    arguments = {"ways": 3, "shots": 4, "steps": 5, "batch": 5, "tasks": 2, "seed": 3, **options}
    dataset = data.inner_batches(numbered_split(), num_steps=num_steps, **arguments)
    return [(images.numpy()[..., 0, 0, 0], labels.numpy()) for images, labels in dataset]


def test_a_task_goes_through_its_images_again_and_again_in_new_orders():
    for numbers, labels in drawn():
        assert numbers.shape == labels.shape == (2, 5, 5)
        for task_numbers, task_labels in zip(numbers.reshape(2, -1), labels.reshape(2, -1), strict=True):
            first, second = task_numbers[:12], task_numbers[12:24]
            assert len(set(first)) == 12 and set(first) == set(second)  # 3 ways of 4 shots, all of them, then again
            assert list(first) != list(second)
            classes = {int(n) // 20: set() for n in task_numbers}
            assert len(classes) == 3
            for number, label in zip(task_numbers, task_labels, strict=True):
                classes[int(number) // 20].add(int(label))
            assert sorted(label for labels in classes.values() for label in labels) == [0, 1, 2]


def test_a_batch_is_a_function_of_seed_and_step_alone():
    all_steps = drawn(num_steps=4)
    later = drawn(num_steps=2, first_step=2)
    for (a, la), (b, lb) in zip(all_steps[2:], later, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(la, lb)
    assert not np.array_equal(all_steps[0][0], all_steps[1][0])
    assert not np.array_equal(all_steps[0][0], drawn(num_steps=1, seed=4)[0][0])


def test_a_task_is_a_function_of_its_number_and_its_order_another_in_each():
    """Task t comes t-th, in meta-steps of whatever number of tasks: no task comes twice."""
    together, alone = drawn(num_steps=2), drawn(num_steps=4, tasks=1)
    for whole, single in zip(zip(*together, strict=True), zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(single))
    # Labels are 0, 0, 0, 0, 1, ... before they are put in order: the order is all that they can differ by.
    orders = [labels[0] for _, labels in alone] + [drawn(num_steps=1, seed=4)[0][1][0]]
    assert len({order.tobytes() for order in orders}) == 5


def test_every_image_comes_equally_often():
    counts = np.zeros(120)
    for numbers, _ in drawn(num_steps=400):
        np.add.at(counts, numbers.reshape(-1), 1)
    expected = counts.mean()
    assert abs(counts - expected).max() < 6 * np.sqrt(3 * expected)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"ways": 9}, {"shots": 30}, {"tasks": 0}, {"first_step": -1}])
def test_bad_counts_are_refused(bad):
    with pytest.raises(ValueError, match="Received"):
        drawn(**bad)


def test_runs_draw_them_from_a_step_on():
    spec = batches.InnerBatches(ways=3, shots=4, steps=2, batch=3, tasks=2, batches_per_epoch=7)
    split = numbered_split()
    assert spec.steps_per_epoch(split) == 7 and spec.batch_size == 12 and spec.num_labels(64) == 3
    images = [x.numpy() for x, _ in spec.dataset(split, seed=0).take(3)]
    np.testing.assert_array_equal(next(iter(spec.dataset(split, seed=0, first_step=2)))[0], images[2])


def test_episodes_of_a_run_are_augmented_by_seed_and_step():
    split = make_split()
    spec = batches.Episodes(ways=3, shots=2, queries=2, tasks=2, padding=2)
    plain = batches.Episodes(ways=3, shots=2, queries=2, tasks=2, augmented=False)
    assert spec.batch_size == 24 and spec.num_labels(64) == 3
    third = [episode for episode in spec.dataset(split, seed=0).take(3)][2]
    again = next(iter(spec.dataset(split, seed=0, first_step=2)))
    bare = next(iter(plain.dataset(split, seed=0, first_step=2)))
    for a, b, c in zip(third, again, bare, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == c.shape
    assert not np.array_equal(third.support_images, bare.support_images)
    np.testing.assert_array_equal(third.query_labels, bare.query_labels)


def test_varied_shots_keep_the_size_of_a_batch_and_depend_on_seed_and_step():
    def drawn(first_step=0, count=30, seed=1):
        dataset = data.episodes_of_varied_shots(numbered_split(), 3, 1, 4, images_per_class=6, tasks=2, seed=seed,
                                                first_step=first_step)
        return [episode for episode in dataset.take(count)]

    batches_drawn = drawn()
    shots = [episode.support_images.shape[1] // 3 for episode in batches_drawn]
    assert set(shots) == {1, 2, 3, 4}
    for k, episode in zip(shots, batches_drawn, strict=True):
        assert episode.query_images.shape[:2] == (2, 3 * (6 - k)) == episode.query_labels.shape
        np.testing.assert_array_equal(episode.support_labels[1], np.repeat(np.arange(3), k))
        numbers = np.concatenate([episode.support_images[0], episode.query_images[0]])[:, 0, 0, 0]
        assert len(set(numbers)) == 18 and len({int(n) // 20 for n in numbers}) == 3
    for a, b in zip(batches_drawn[10], drawn(first_step=10, count=1)[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert [episode.support_images.shape[1] // 3 for episode in drawn(seed=2)] != shots
    with pytest.raises(ValueError, match="images_per_class=4"):
        data.episodes_of_varied_shots(numbered_split(), 3, 1, 4, images_per_class=4)


def test_shots_that_do_not_vary_give_the_tasks_of_episodes():
    varied = data.episodes_of_varied_shots(numbered_split(), 3, 2, 2, images_per_class=6, tasks=2, seed=1).take(3)
    plain = data.episodes(numbered_split(), ways=3, shots=2, queries=4, tasks_per_batch=2, seed=1).take(3)
    for a, b in zip(varied, plain, strict=True):
        for values, expected in zip(a, b, strict=True):
            np.testing.assert_array_equal(values, expected)


def test_a_run_may_vary_its_shots():
    spec = batches.Episodes(ways=3, shots=(1, 4), queries=5, tasks=2, padding=2)
    assert spec.batch_size == 36
    episodes_drawn = [episode for episode in spec.dataset(make_split(), seed=0).take(8)]
    sizes = {(episode.support_images.shape[1], episode.query_images.shape[1]) for episode in episodes_drawn}
    assert len(sizes) > 1 and all(s + q == 18 for s, q in sizes)
