"""The classical training step against PyTorch's, and the whole input pipeline against the bare step.

bare step      one batch in memory, again and again: forward, backward, SGD with Nesterov momentum, metrics, loss read
end to end     the same step on batches as a run draws them: class pairs, augmentation, loading
peer           the same network and optimizer in PyTorch, channels_last, all cores, on a batch that is normalised and
               laid out beforehand (ours does that inside the step)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_unravel import backbones, learners
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.batches import ClassPairs
from tf_unravel.reproduction.benchmark import peers
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.timing import Work, interleaved


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are what the targets are about.

    Args:
        image_size: side of the images.
        batch_size: images a step.
        num_classes, images_per_class: of the split that end-to-end batches are drawn from.
        conv4_filters, r2d2_filters: of the two networks.
        conv4_steps, r2d2_steps: steps in one round.
        rounds: of interleaved repeats.
        names: of the networks to measure.
    """

    image_size: int = 32
    batch_size: int = 128
    num_classes: int = 64
    images_per_class: int = 200
    conv4_filters: int = 64
    r2d2_filters: Sequence[int] = (96, 192, 384, 512)
    conv4_steps: int = 24
    r2d2_steps: int = 8
    rounds: int = 7
    names: Sequence[str] = ("conv4", "r2d2")


FULL = Sizes()
QUICK = Sizes(16, 8, 4, 6, 4, (4, 4, 4, 4), 2, 2, 2)


class Network(NamedTuple):
    """One of the two networks, ours and the peer's."""

    name: str
    build: Callable[[], keras.Model]
    peer: str  # the class in `peers.networks`
    filters: Any
    steps: int  # in one round


def networks(sizes: Sizes) -> list[Network]:
    """The networks of `sizes.names`."""
    shape = (sizes.image_size, sizes.image_size, 3)
    conv4 = functools.partial(backbones.conv4, shape, filters=sizes.conv4_filters)
    r2d2 = functools.partial(backbones.r2d2, shape, filters=sizes.r2d2_filters)
    known = (
        Network("conv4", conv4, "Conv4", sizes.conv4_filters, sizes.conv4_steps),
        Network("r2d2", r2d2, "R2D2", sizes.r2d2_filters, sizes.r2d2_steps),
    )
    return [network for network in known if network.name in sizes.names]


def random_split(num_classes: int, images_per_class: int, image_size: int) -> ClassImages:
    """Random pixels, `images_per_class` images of every class."""
    count = num_classes * images_per_class
    pixels = np.random.default_rng(0).integers(0, 256, (count, image_size, image_size, 3), np.uint8)
    class_ids = np.repeat(np.arange(num_classes), images_per_class)
    return ClassImages(pixels, class_ids, tuple(map(str, range(num_classes))), "random pixels")


def step_function(backbone: keras.Model, num_classes: int, regularizer: Any = None) -> Callable[[Any], float]:
    """A classical training step as a run takes it, batch -> loss."""
    learner = learners.Classical(backbone, num_classes, regularizer, weight_decay=5e-4)
    learner.compile(optimizer=learners.sgd(steps_per_epoch=1, rates=(0.01,)))
    learner.optimizer.build(learner.trainable_variables)
    step = tf.function(lambda batch: learner.train_step(batch))
    return lambda batch: float(step(batch)["loss"])


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Images a second of both networks, bare and end to end."""
    split = random_split(sizes.num_classes, sizes.images_per_class, sizes.image_size)
    for network in networks(sizes):
        rates = interleaved(_works(sizes, split, network), sizes.rounds)
        what = f"classical step, {network.name}, {sizes.image_size}x{sizes.image_size}, batch {sizes.batch_size}"
        name, note = ("PyTorch channels_last", "") if "peer" in rates else (peers.MISSING, peers.NOTE)
        yield Measurement(what, "images/s", rates["bare"], rates.get("peer", ()), name, Target(1.0), note)
        what = f"end to end with loading and augmentation, {network.name}"
        yield Measurement(what, "images/s", rates["end to end"], rates["bare"], "our bare step", Target(0.9))


def _works(sizes: Sizes, split: ClassImages, network: Network) -> dict[str, Work]:
    step, torch_networks = step_function(network.build(), split.num_classes), peers.peer("networks")
    batches = iter(ClassPairs(sizes.batch_size).dataset(split, seed=0))
    fixed = next(batches)
    runs = {
        "bare": lambda: [step(fixed) for _ in range(network.steps)],
        # Between rounds the pipeline stands still with full buffers, and a round leaves them full: it pays its own way.
        "end to end": lambda: [step(next(batches)) for _ in range(network.steps)],
    }
    if torch_networks:
        images, class_ids = (part.numpy() for part in fixed)
        module = getattr(torch_networks, network.peer)(network.filters)
        peer_step = torch_networks.classical_step(module, images, class_ids, split.num_classes)
        runs["peer"] = lambda: [peer_step() for _ in range(network.steps)]
    return {name: Work(run, network.steps * sizes.batch_size) for name, run in runs.items()}
