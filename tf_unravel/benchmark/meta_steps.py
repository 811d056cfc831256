"""Meta-training steps and fine-tuning against PyTorch's.

maml        a meta-step of 4 tasks, 5-way, 15 queries, 5 inner steps, conv4-32, second and first order
reptile     a meta-step of 5 tasks, 8 inner steps of 10 images; weight clustering beside plain
episodic    a step of 8 episodes, 5-way 5-shot, 6 queries, r2d2, under each head
fine-tune   tasks adapted by 50 steps of 5 images, queries normalised one by one (Table 5's evaluation)

Ours is the step of a run, as one graph, on images in memory; normalisation of the pixels included.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_unravel import backbones, heads, learners
from tf_unravel.benchmark import peers, published
from tf_unravel.benchmark.measurement import Measurement, Target
from tf_unravel.benchmark.timing import Work, interleaved
from tf_unravel.data.sampling import Episode


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are what the targets are about.

    Args:
        sides: of the images, for MAML and Reptile.
        shots: for MAML.
        queries: per class, for MAML.
        tasks: in MAML's meta-batch.
        filters: of conv4.
        r2d2_filters: of the episodic network.
        episodes: in an episodic batch.
        fine_tune_tasks, fine_tune_queries, fine_tune_steps: of the evaluation.
        rounds: of interleaved repeats.
        parts: which of the four.
    """

    sides: Sequence[int] = (32, 84)
    shots: Sequence[int] = (1, 5)
    queries: int = 15
    tasks: int = 4
    filters: int = 32
    r2d2_filters: Sequence[int] = (96, 192, 384, 512)
    episodes: int = 8
    fine_tune_tasks: int = 4
    fine_tune_queries: int = 1
    fine_tune_steps: int = 50
    rounds: int = 5
    parts: Sequence[str] = ("maml", "reptile", "episodic", "fine-tune")


FULL = Sizes()
QUICK = Sizes((16,), (1,), 1, 2, 4, (4, 4, 4, 4), 2, 2, 1, 3, 2)
WAYS = 5


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Rates of every kind of step beside the peers'."""
    makers = {"maml": _maml, "reptile": _reptile, "episodic": _episodic, "fine-tune": _fine_tune}
    for part in sizes.parts:
        yield from makers[part](sizes)


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


def _step_of(learner: learners.Learner, optimizer: Any, batch: Any) -> Callable[[], float]:
    learner.compile(optimizer=optimizer)
    learner.optimizer.build(learner.trainable_variables)
    step = tf.function(lambda data: learner.train_step(data))
    batch = tf.nest.map_structure(tf.constant, batch)
    return lambda: float(step(batch)["loss"])


def _compared(
    works: dict[str, Work], sizes: Sizes, what: str, unit: str, targets: dict[str, tuple[str, float | None]]
) -> Iterator[Measurement]:
    """One measurement for each peer of `targets` (work -> (name, target)); without PyTorch ours stands alone."""
    rates = interleaved(works, sizes.rounds)
    for peer, (name, bound) in targets.items():
        there = peer in rates
        yield Measurement(what, unit, rates["ours"], rates.get(peer, ()), name if there else peers.MISSING,
                          Target(bound) if bound else None, "" if there else peers.NOTE)


def _maml(sizes: Sizes) -> Iterator[Measurement]:
    torch_meta = peers.peer("meta")
    for first_order in (False, True):
        order = "first" if first_order else "second"
        for side in sizes.sides:
            for shots in sizes.shots:
                episodes = random_episodes(sizes.tasks, side, shots, sizes.queries)
                learner = learners.MAML(_conv4(sizes, side), WAYS, 5, 0.01, first_order=first_order)
                works = {"ours": Work(_step_of(learner, keras.optimizers.Adam(1e-3), episodes))}
                if torch_meta:
                    for by in ("loop", "vmap"):
                        network = torch_meta.Conv4WithHead(sizes.filters, side, WAYS)
                        works[by] = Work(torch_meta.maml_step(network, episodes, 5, 0.01, first_order, by))
                what = f"MAML meta-step, {order} order, {side}x{side}, {shots}-shot"
                targets = {"loop": ("PyTorch, loop over tasks", None), "vmap": ("PyTorch, vmap", 1.0)}
                yield from _compared(works, sizes, what, "steps/s", targets)
                seconds = published.META_STEP_SECONDS.get((f"MAML {order} order", side, shots))
                if seconds:
                    rates = interleaved({"ours": works["ours"]}, sizes.rounds, warm_up=0)["ours"]
                    yield Measurement(what, "steps/s", rates, (1 / seconds,), f"learn2learn ({published.NAME})",
                                      Target(2.0), published.NOTE)


def _reptile(sizes: Sizes) -> Iterator[Measurement]:
    torch_meta = peers.peer("meta")
    rng = np.random.default_rng(0)
    for side in sizes.sides:
        images = rng.integers(0, 256, (5, 8, 10, side, side, 3), np.uint8)
        labels = rng.integers(0, WAYS, (5, 8, 10)).astype(np.int32)
        works = {}
        for name, coefficient in (("ours", 0.0), ("clustered", 5e-5)):
            learner = learners.Reptile(_conv4(sizes, side), WAYS, 8, 10, weight_clustering=coefficient)
            works[name] = Work(_step_of(learner, keras.optimizers.SGD(0.5), (images, labels)))
        if torch_meta:
            network = torch_meta.Conv4WithHead(sizes.filters, side, WAYS)
            works["loop"] = Work(torch_meta.reptile_step(network, images, labels))
        rates = interleaved(works, sizes.rounds)
        what = f"Reptile meta-step, {side}x{side}"
        name, note = ("PyTorch loop", "") if torch_meta else (peers.MISSING, peers.NOTE)
        yield Measurement(what, "steps/s", rates["ours"], rates.get("loop", ()), name, Target(1.5), note)
        yield Measurement(f"{what}, with weight clustering", "steps/s", rates["clustered"], rates["ours"],
                          "without", Target(0.9))


def _episodic(sizes: Sizes) -> Iterator[Measurement]:
    side = min(sizes.sides)
    episodes = random_episodes(sizes.episodes, side, 5, 6)
    torch_meta, torch_heads, networks = (peers.peer(name) for name in ("meta", "heads", "networks"))
    for head, name in ((heads.Prototypes(True), "prototypes"), (heads.Ridge(), "ridge"), (heads.SVM(), "svm")):
        backbone = backbones.r2d2((side, side, 3), filters=sizes.r2d2_filters)
        learner = learners.Episodic(backbone, head, weight_decay=5e-4)
        works = {"ours": Work(_step_of(learner, learners.sgd(1, 0.01), episodes))}
        if torch_meta and (name != "svm" or torch_heads.has_qpth()):
            torch_head = getattr(torch_heads, name)
            if name == "svm":
                torch_head = functools.partial(torch_head, iterations=15)
            network = networks.R2D2(sizes.r2d2_filters)
            works["torch"] = Work(torch_meta.episodic_step(network, torch_head, episodes, WAYS))
        targets = {"torch": ("PyTorch channels_last", 1.0)}
        yield from _compared(works, sizes, f"episodic step, r2d2, {side}x{side}, {name}", "steps/s", targets)


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
    yield from _compared(works, sizes, what, "tasks/s", {"loop": ("PyTorch loop", 2.0)})
