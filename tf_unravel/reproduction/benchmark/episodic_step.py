"""A step of ProtoNet, R2-D2 and MetaOptNet against PyTorch's, and what of it is the head.

A step is 8 episodes, 5-way 5-shot, 6 queries, r2d2, in one pass over the network, on images in memory; normalisation of
the pixels included.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_unravel import backbones, heads, learners
from tf_unravel.reproduction.benchmark import peers
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.meta_steps import WAYS, beside, random_episodes, step_of
from tf_unravel.reproduction.benchmark.timing import Work, interleaved


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are what the targets are about.

    Args:
        side: of the images.
        filters: of r2d2.
        episodes: in a batch.
        rounds: of interleaved repeats.
    """

    side: int = 32
    filters: Sequence[int] = (96, 192, 384, 512)
    episodes: int = 8
    rounds: int = 5


FULL = Sizes()
QUICK = Sizes(16, (4, 4, 4, 4), 2, 2)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """The step under each head, and each head beside its step."""
    side, episodes = sizes.side, random_episodes(sizes.episodes, sizes.side, 5, 6)
    torch_meta, torch_heads, networks = (peers.peer(name) for name in ("meta", "heads", "networks"))
    for head, name in ((heads.Prototypes(True), "prototypes"), (heads.Ridge(), "ridge"), (heads.SVM(), "svm")):
        backbone = backbones.r2d2((side, side, 3), filters=sizes.filters)
        learner = learners.Episodic(backbone, head, weight_decay=5e-4)
        works = {"ours": Work(step_of(learner, learners.sgd(1, 0.01), episodes))}
        works["alone"] = _alone(head, sizes.episodes, backbone.output_shape[1])
        if torch_meta and torch_heads and networks and (name != "svm" or torch_heads.has_qpth()):
            torch_head = getattr(torch_heads, name)
            if name == "svm":
                torch_head = functools.partial(torch_head, iterations=15)
            network = networks.R2D2(sizes.filters)
            works["torch"] = Work(torch_meta.episodic_step(network, torch_head, episodes, WAYS))
        what, rates = f"episodic step, r2d2, {side}x{side}, {name}", interleaved(works, sizes.rounds)
        yield beside("torch", rates, what, "steps/s", "PyTorch channels_last", 1.0)
        step, alone = (tuple(1e3 / rate for rate in rates[key]) for key in ("ours", "alone"))
        target = Target(0.05, at_least=False) if name == "svm" else None
        yield Measurement(f"{name} alone, forward and backward", "ms", alone, step, "the whole step", target)


def _alone(head: Any, episodes: int, dimension: int, count: int = 10) -> Work:
    """The head and its gradients by support and query features, on features of the step's size."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(WAYS, dtype=np.int32), 5)
    support, query = (
        tf.constant(rng.standard_normal((episodes, size, dimension), np.float32)) for size in (WAYS * 5, WAYS * 6)
    )
    labels = tf.constant(np.tile(labels, (episodes, 1)))

    @tf.function
    def gradients(support: tf.Tensor, query: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([support, query])
            logits = head(support, labels, query, WAYS)
        return tape.gradient(logits, [support, query])

    return Work(lambda: [gradients(support, query)[0].numpy() for _ in range(count)], count)
