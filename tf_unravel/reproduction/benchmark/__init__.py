"""`tf-unravel benchmark`: how fast this package is on this machine, beside peers that run in the same minutes.

Absolute figures move with the machine, from one hour to the next too. What is compared therefore takes turns within
one run, and what is reported is the median of the rounds' ratios with their range (`timing`). Peers are plain PyTorch
versions written for this benchmark (`peers`; optional), and figures published for another machine where a peer cannot
be run (`published`). Every part yields `Measurement`s; a new part is a module with `measure(sizes)`, `FULL` and
`QUICK`, listed in `PARTS`.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf
import tqdm

from tf_unravel.files import write_json
from tf_unravel.reproduction.benchmark import (
    child,
    classical_step,
    decoding,
    episodic_step,
    machine,
    many_classes,
    many_images,
    many_tasks,
    meta_memory,
    meta_steps,
    regularizer_cost,
    sampling,
    serving,
    start,
    tasks,
)
from tf_unravel.reproduction.benchmark.measurement import Measurement, table

PARTS: dict[str, ModuleType] = {
    "step": classical_step,
    "regularizers": regularizer_cost,
    "evaluation": tasks,
    "many_tasks": many_tasks,
    "many_classes": many_classes,
    "sampling": sampling,
    "episodic": episodic_step,
    "meta": meta_steps,
    "memory": meta_memory,
    "start": start,
    "serving": serving,
    "decoding": decoding,
    "many_images": many_images,
}


def run(
    only: Sequence[str] = (),
    out: str | os.PathLike[str] = "benchmark.json",
    quick: bool = False,
    data_root: str | None = None,
    model: str | None = None,
) -> str:
    """Measures, and returns the table.

    The JSON file is written anew after each measurement, so that a benchmark which is interrupted leaves what it has.

    Args:
        only: names of the parts to run; all by default.
        out: the JSON file.
        quick: tiny sizes, to see in seconds that every part works; its figures mean nothing.
        data_root: a folder of image classes for the part `decoding`, in place of images that it makes.
        model: an exported model for it, in place of conv4 untrained.

    Returns:
        The table as text.

    Raises:
        ValueError: an unknown part; a folder or a model that cannot be used.
        OSError: `out` cannot be written, or a process that is measured failed.
    """
    unknown = sorted(set(only) - set(PARTS))
    if unknown:
        raise ValueError(f"--only takes {', '.join(PARTS)}. Received: {', '.join(unknown)}")
    if only and "decoding" not in only and (data_root or model):
        raise ValueError("--data_root and --model are for the part decoding; leave them out. "
                         f"Received: --only={','.join(only)}")
    facts = machine.facts(256 if quick else 2048)
    measured: dict[str, list[Measurement]] = {name: [] for name in only or PARTS}
    _write(pathlib.Path(out), facts, measured)
    with _without_tracing_warnings(), tqdm.tqdm(measured, unit="part", disable=None, leave=False) as bar:
        for name in bar:
            bar.set_description(name)
            given = {"data_root": data_root, "model": model} if name == "decoding" else {}
            for measurement in _measured(name, quick, **given):
                measured[name].append(measurement)
                bar.set_postfix_str(measurement.what)
                _write(pathlib.Path(out), facts, measured)
    return f"{machine.describe(facts)}\n\n{table([each for part in measured.values() for each in part])}"


def _measured(name: str, quick: bool, **given: Any) -> Iterator[Measurement]:
    """What a part measures: here, or in a process of its own if it wants another number of threads."""
    part = PARTS[name]
    if getattr(part, "THREADS_PER_OP", 0):
        arguments = (part.__name__, str(part.THREADS_PER_OP), "QUICK" if quick else "FULL")
        lines = child.stream_module(f"{__name__}.part_process", *arguments)
        yield from map(Measurement.of_plain, lines)
    else:
        yield from part.measure(dataclasses.replace(part.QUICK if quick else part.FULL, **given))


@contextlib.contextmanager
def _without_tracing_warnings() -> Iterator[None]:
    """TensorFlow warns of functions that are traced again and again, which is what trying many variants means."""
    logger = tf.get_logger()
    before = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(before)


def _write(path: pathlib.Path, facts: dict[str, Any], measured: dict[str, list[Measurement]]) -> None:
    lines = [{"part": name, **each.as_json()} for name, part in measured.items() for each in part]
    write_json(path, {"machine": facts, "measurements": lines})


__all__ = ["PARTS", "run"]
