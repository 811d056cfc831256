"""Episodes of images sampled, gathered and stacked a second: 5-way 1-shot with 15 queries a class.

Ours is `data.episodes`, iterated in Python one episode at a time, and in batches. The peer picks image by image from a
data set in memory and stacks them, as learn2learn does.
"""

import dataclasses
from collections.abc import Iterator

from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.tasks import episodes
from tf_unravel.reproduction.benchmark import peers, published
from tf_unravel.reproduction.benchmark.classical_step import random_split
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.timing import Work, interleaved

_WAYS, _SHOTS, _QUERIES = 5, 1, 15
_TARGET = Target(5.0)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        num_classes, images_per_class, image_size: of the split.
        num_episodes: of ours in a round, a multiple of `tasks_per_batch`.
        tasks_per_batch: episodes a batch, where they come in batches.
        peer_episodes: of the peer's in a round.
        rounds: of interleaved repeats.
    """

    num_classes: int = 100
    images_per_class: int = 500
    image_size: int = 32
    num_episodes: int = 8000
    tasks_per_batch: int = 16
    peer_episodes: int = 500
    rounds: int = 7


FULL = Sizes()
QUICK = Sizes(6, 20, 8, 32, 16, 4, 2)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Episodes a second, one at a time and in batches."""
    split = random_split(sizes.num_classes, sizes.images_per_class, sizes.image_size)
    works = {"one at a time": _ours(sizes, split, None),
             f"in batches of {sizes.tasks_per_batch}": _ours(sizes, split, sizes.tasks_per_batch)}
    kinds, sampler = list(works), peers.peer("episodes")
    if sampler:
        drawn = sampler.EpisodeSampler(split.images, split.class_ids)
        works["peer"] = Work(
            lambda: [drawn.sample(_WAYS, _SHOTS + _QUERIES) for _ in range(sizes.peer_episodes)], sizes.peer_episodes
        )
    rates = interleaved(works, sizes.rounds)
    for kind in kinds:
        what = f"episodes of {sizes.image_size}x{sizes.image_size} images, {kind}"
        name, note = ("PyTorch, image by image", "") if sampler else (peers.MISSING, peers.NOTE)
        yield Measurement(what, "episodes/s", rates[kind], rates.get("peer", ()), name, _TARGET, note)
        constant = (published.EPISODES_PER_SECOND,)
        name, note = "learn2learn, published", published.NOTE
        yield Measurement(what, "episodes/s", rates[kind], constant, name, _TARGET, note)


def _ours(sizes: Sizes, split: ClassImages, tasks_per_batch: int | None) -> Work:
    def run() -> None:
        for _ in episodes(split, _WAYS, _SHOTS, _QUERIES, sizes.num_episodes, tasks_per_batch=tasks_per_batch):
            pass

    return Work(run, sizes.num_episodes)
