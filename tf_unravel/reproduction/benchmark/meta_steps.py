"""Steps of meta-learners with an inner loop, and fine-tuning, against PyTorch's.

maml        a meta-step of 4 tasks, 5-way, 15 queries, 5 inner steps, conv4-32, second and first order
reptile     a meta-step of 5 tasks, 8 inner steps of 10 images; weight clustering beside plain
fine-tune   tasks adapted by 50 steps of 5 images, queries normalised one by one (Table 5's evaluation); and how long
            100,000 such tasks would take by `evaluate`, from a few hundred

Ours is the step of a run, as one graph, on images in memory; normalisation of the pixels included. As in these
learners' gin files an operation has one thread (`run.threads_per_op`), and tasks run side by side; PyTorch's operations
have all of them. TensorFlow fixes the number when it starts, hence the process of their own (`THREADS_PER_OP`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_unravel import backbones, data, heads, learners
from tf_unravel.data.sampling.tasks import Episode
from tf_unravel.evaluation import evaluate
from tf_unravel.reproduction.benchmark import peers, published
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.timing import Work, interleaved


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are what the targets are about.

    Args:
        sides: of the images, for MAML and Reptile.
        shots: for MAML.
        queries: per class, for MAML.
        tasks: in MAML's meta-batch.
        filters: of conv4.
        fine_tune_tasks, fine_tune_queries, fine_tune_steps: of the evaluation.
        evaluated_tasks: from how many tasks the time of 100,000 is projected.
        rounds: of interleaved repeats.
    """

    sides: Sequence[int] = (32, 84)
    shots: Sequence[int] = (1, 5)
    queries: int = 15
    tasks: int = 4
    filters: int = 32
    fine_tune_tasks: int = 4
    fine_tune_queries: int = 1
    fine_tune_steps: int = 50
    evaluated_tasks: int = 300
    rounds: int = 5


FULL = Sizes()
QUICK = Sizes((16,), (1,), 1, 2, 4, 2, 1, 3, 4, 2)
WAYS = 5
THREADS_PER_OP = 1


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Rates of every kind of step beside the peers'."""
    yield from _maml(sizes)
    yield from _reptile(sizes)
    yield from _fine_tune(sizes)


def random_episodes(tasks: int, side: int, shots: int, queries: int) -> Episode:
    """Episodes of random pixels."""
    rng = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return rng.integers(0, 256, (tasks, WAYS * count, side, side, 3), np.uint8)

    def labels(count: int) -> np.ndarray:
        return np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), count), (tasks, 1))

    return Episode(images(shots), labels(shots), images(queries), labels(queries))


def _conv4(sizes: Sizes, side: int) -> keras.Model:
    return backbones.conv4((side, side, 3), filters=sizes.filters, use_bias=True)


def step_of(learner: learners.Learner, optimizer: Any, batch: Any) -> Callable[[], float]:
    """A training step on one batch, as one graph; returns the loss."""
    learner.compile(optimizer=optimizer)
    learner.optimizer.build(learner.trainable_variables)
    step = tf.function(lambda data: learner.train_step(data))
    batch = tf.nest.map_structure(tf.constant, batch)
    return lambda: float(step(batch)["loss"])


def beside(
    peer: str, rates: dict[str, tuple[float, ...]], what: str, unit: str, name: str, bound: float | None
) -> Measurement:
    """Ours beside a peer of the same rounds; without PyTorch ours stands alone."""
    note = ""
    if peer not in rates:
        name, note = ("no qpth", peers.QPTH_NOTE) if peers.peer("meta") else (peers.MISSING, peers.NOTE)
    return Measurement(what, unit, rates["ours"], rates.get(peer, ()), name, Target(bound) if bound else None, note)


def _maml(sizes: Sizes) -> Iterator[Measurement]:
    torch_meta = peers.peer("meta")
    for first_order in (False, True):
        order = "first" if first_order else "second"
        for side in sizes.sides:
            for shots in sizes.shots:
                episodes = random_episodes(sizes.tasks, side, shots, sizes.queries)
                learner = learners.MAML(_conv4(sizes, side), WAYS, 5, 0.01, first_order=first_order)
                works = {"ours": Work(step_of(learner, keras.optimizers.Adam(1e-3), episodes))}
                if torch_meta:
                    for by in ("loop", "vmap"):
                        network = torch_meta.Conv4WithHead(sizes.filters, side, WAYS)
                        works[by] = Work(torch_meta.maml_step(network, episodes, 5, 0.01, first_order, by))
                what = f"MAML meta-step, {order} order, {side}x{side}, {shots}-shot"
                rates = interleaved(works, sizes.rounds)
                yield beside("loop", rates, what, "steps/s", "PyTorch, loop over tasks", None)
                yield beside("vmap", rates, what, "steps/s", "PyTorch, vmap", 1.0)
                seconds = published.META_STEP_SECONDS.get((f"MAML {order} order", side, shots))
                if seconds:
                    yield Measurement(what, "steps/s", rates["ours"], (1 / seconds,),
                                      f"learn2learn ({published.NAME})", Target(2.0), published.NOTE)


def _reptile(sizes: Sizes) -> Iterator[Measurement]:
    torch_meta = peers.peer("meta")
    rng = np.random.default_rng(0)
    for side in sizes.sides:
        images = rng.integers(0, 256, (5, 8, 10, side, side, 3), np.uint8)
        labels = rng.integers(0, WAYS, (5, 8, 10)).astype(np.int32)
        works = {}
        for name, coefficient in (("ours", 0.0), ("clustered", 5e-5)):
            learner = learners.Reptile(_conv4(sizes, side), WAYS, 8, 10, weight_clustering=coefficient)
            works[name] = Work(step_of(learner, keras.optimizers.SGD(0.5), (images, labels)))
        if torch_meta:
            network = torch_meta.Conv4WithHead(sizes.filters, side, WAYS)
            works["loop"] = Work(torch_meta.reptile_step(network, images, labels))
        rates = interleaved(works, sizes.rounds)
        what = f"Reptile meta-step, {side}x{side}"
        name, note = ("PyTorch loop", "") if torch_meta else (peers.MISSING, peers.NOTE)
        yield Measurement(what, "steps/s", rates["ours"], rates.get("loop", ()), name, Target(1.5), note)
        yield Measurement(f"{what}, with weight clustering", "steps/s", rates["clustered"], rates["ours"],
                          "without", Target(0.9))


def _fine_tune(sizes: Sizes) -> Iterator[Measurement]:
    torch_meta, side = peers.peer("meta"), max(sizes.sides)
    episodes = random_episodes(sizes.fine_tune_tasks, side, 1, sizes.fine_tune_queries)
    backbone, head = _conv4(sizes, side), heads.FineTune(
        sizes.fine_tune_steps, optimizer=heads.Adam(1e-3), batch_size=5, batchnorm="one_by_one"
    )
    arguments = (episodes.support_images, episodes.support_labels, episodes.query_images)
    works = {"ours": Work(lambda: head(backbone, *arguments, WAYS).numpy(), sizes.fine_tune_tasks)}
    if torch_meta:
        network = torch_meta.Conv4WithHead(sizes.filters, side, WAYS)
        run = torch_meta.fine_tune(network, episodes, sizes.fine_tune_steps, 5)
        works["loop"] = Work(run, sizes.fine_tune_tasks)
    what = f"fine-tuning, {sizes.fine_tune_steps} steps of 5 images, {side}x{side}, 1-shot"
    yield beside("loop", interleaved(works, sizes.rounds), what, "tasks/s", "PyTorch loop", 2.0)
    yield _projected(backbone, head, sizes)


def _projected(backbone: keras.Model, head: heads.FineTune, sizes: Sizes) -> Measurement:
    """Hours for 100,000 tasks by `evaluate`, from fewer; the first call, which traces, is left out."""
    rng, side = np.random.default_rng(0), max(sizes.sides)
    images = rng.integers(0, 256, (200, side, side, 3), np.uint8)
    split = data.ClassImages(images, np.repeat(np.arange(10), 20), tuple("abcdefghij"), "random")

    def run() -> None:
        evaluate(backbone, head, split, WAYS, 1, sizes.fine_tune_queries, sizes.evaluated_tasks)

    tasks_per_second = interleaved({"ours": Work(run, sizes.evaluated_tasks)}, rounds=1)["ours"]
    what = f"100,000 tasks of fine-tuning, {side}x{side}, 1-shot, projected from {sizes.evaluated_tasks}"
    return Measurement(what, "hours", tuple(100_000 / rate / 3600 for rate in tasks_per_second))
