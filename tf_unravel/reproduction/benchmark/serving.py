"""`tf-unravel serve` under load, with pixel lists and with files, and what calibration adds to a request.

The server is a process of its own, started as docs/guides/export_and_serving.md says, and so are its clients
(`serving_load`); both share the cores. The network is not trained, which costs as much as a trained one. An answer that
is not 200 ends the benchmark: where there are figures, every request was answered.
"""

import base64
import contextlib
import importlib.util
import json
import logging
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_unravel import backbones, deployment, heads
from tf_unravel.adaptation.labels import labels_checked
from tf_unravel.reproduction.benchmark.child import command, environment, last_line, run_module
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.photographs import colours, file_of, photograph
from tf_unravel.reproduction.benchmark.timing import Work, interleaved

_LOAD = "tf_unravel.reproduction.benchmark.serving_load"
_HEADS = {"prototypes": heads.Prototypes(), "ridge": heads.Ridge(), "svm": heads.SVM(), "linear": heads.Linear()}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        side, filters: of the images and of conv4.
        ways, shots: of the task in each request; it has one query.
        photograph: (height, width) of images that are sent as a camera's are, and reduced by the server.
        many: (classes, images of each) of the model that has its support set built in.
        connections: that are kept open, each with one request after the other; the model of many classes has one.
        seconds, rounds: of each load.
        calibrated: (head, classes, images of each) of the tasks that are calibrated.
        dimension: of their features.
    """

    side: int = 32
    filters: int = 64
    ways: int = 5
    shots: int = 5
    photograph: tuple[int, int] = (480, 640)
    many: tuple[int, int] = (1000, 5)
    connections: int = 4
    seconds: float = 20.0
    rounds: int = 3
    calibrated: Sequence[tuple[str, int, int]] = (
        ("prototypes", 5, 5), ("ridge", 5, 5), ("svm", 5, 5), ("linear", 5, 5), ("ridge", 100, 20)
    )  # fmt: skip
    dimension: int = 640


FULL = Sizes()
QUICK = Sizes(16, 4, 3, 2, (40, 60), (20, 2), 2, 0.3, 1, (("ridge", 3, 2),), 12)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Requests a second and latencies of each load, then the times with and without calibration."""
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        _log.warning("the server is not measured: it needs pip install 'tf-unravel[serve]'.")
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield from _tasks_in_requests(sizes, pathlib.Path(folder))
            yield from _many_classes(sizes, pathlib.Path(folder))
    for name, ways, shots in sizes.calibrated:
        yield _calibration(sizes, name, ways, shots)


def _tasks_in_requests(sizes: Sizes, folder: pathlib.Path) -> Iterator[Measurement]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(sizes.ways), sizes.shots)
    of = [colours(rng) for _ in range(sizes.ways)]
    images, large = (np.stack([photograph(rng, of[label], *size) for label in (*labels, 0)])
                     for size in ((sizes.side, sizes.side), sizes.photograph))
    bodies = {"pixel lists": _body("classify", inputs={
        "support_images": images[:-1].tolist(), "support_labels": labels.tolist(), "query_images": images[-1:].tolist()
    })}
    for these in (images, large):
        files = [_b64(image) for image in these]
        bodies[f"JPEG of {these.shape[2]}x{these.shape[1]}"] = _body("classify_encoded", inputs={
            "support_bytes": files[:-1], "support_labels": labels.tolist(), "query_bytes": files[-1:]
        })
    model = deployment.export(_network(sizes), heads.Ridge(), folder / "tasks" / "1")
    found = _load(model, bodies, sizes.connections, sizes)
    what = f"{sizes.ways}-way {sizes.shots}-shot, 1 query, {sizes.side}x{sizes.side}, {sizes.connections} connections"
    for name, body in bodies.items():
        lists = [] if name == "pixel lists" else found["pixel lists"]
        yield from _lines(f"{what}, {name}", found[name], len(body), lists)


def _many_classes(sizes: Sizes, folder: pathlib.Path) -> Iterator[Measurement]:
    rng = np.random.default_rng(0)
    classes, shots = sizes.many
    support = rng.integers(0, 256, (classes * shots, sizes.side, sizes.side, 3), np.uint8)
    model = deployment.export(_network(sizes), heads.Ridge(), folder / "many" / "1",
                              support=(support, np.repeat(np.arange(classes), shots)))
    query = photograph(rng, colours(rng), sizes.side, sizes.side)
    what = f"{classes:,} classes x {shots} built in, 1 JPEG of {sizes.side}x{sizes.side}, 1 connection"
    body = _body("classify_encoded", instances=[_b64(query)])
    found = _load(model, {what: body}, 1, sizes)
    yield from _lines(what, found[what], len(body), target=Target(100.0, at_least=False, of_ratio=False))


def _network(sizes: Sizes) -> Any:
    return backbones.conv4((sizes.side, sizes.side, 3), filters=sizes.filters)


def _b64(image: np.ndarray) -> dict[str, str]:
    return {"b64": base64.b64encode(file_of(image, "JPEG 4:2:0")).decode()}


def _body(signature: str, **inputs: Any) -> str:
    return json.dumps({"signature_name": signature, **inputs})


def _load(
    model: pathlib.Path, bodies: Mapping[str, str], connections: int, sizes: Sizes
) -> dict[str, list[dict[str, float]]]:
    """What `serving_load` says of a model that is served while it runs."""
    with _served(model) as address:
        given = {"address": address, "loads": {name: (body, connections) for name, body in bodies.items()},
                 "seconds": sizes.seconds, "rounds": sizes.rounds}
        written = model.parent / "load.json"  # longer than an argument may be
        written.write_text(json.dumps(given), encoding="utf-8")
        return dict(run_module(_LOAD, str(written)))


@contextlib.contextmanager
def _served(model: pathlib.Path) -> Iterator[str]:
    """The model's address at a server that runs meanwhile."""
    arguments = ("serve", f"--model={model}", "--port=0")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors, subprocess.Popen(
        command("tf_unravel.cli", *arguments), env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                process.wait()
                errors.seek(0)
                raise ChildProcessError(f"tf-unravel serve ended before it served: {last_line(errors.read())}")
            yield line.rpartition(" at ")[2].strip()
        finally:
            process.kill()


def _lines(
    what: str,
    rounds: Sequence[dict[str, float]],
    size: int,
    lists: Sequence[dict[str, float]] = (),
    target: Target | None = None,
) -> Iterator[Measurement]:
    """A load's rate and latencies, beside those of pixel lists; the target is for p50."""
    note = f"{sum(int(each['requests']) for each in rounds):,} requests of {size:,} bytes, 0 errors"
    for key, unit in (("requests_per_second", "requests/s"), ("p50", "ms"), ("p99", "ms")):
        ours, peer = (tuple(each[key] for each in these) for these in (rounds, lists))
        named, aim = (what, None) if unit == "requests/s" else (f"{what}: {key}", target if key == "p50" else None)
        yield Measurement(named, unit, ours, peer, "pixel lists" if peer else "", aim, note)


def _calibration(sizes: Sizes, name: str, ways: int, shots: int) -> Measurement:
    """Milliseconds of a head's answer to one query, calibrated and with p_known, beside its logits alone.

    Both are graphs, as in an exported model, on features: the network's own time is the same.
    """
    head, rng = _HEADS[name], np.random.default_rng(0)
    labels = tf.constant(np.repeat(np.arange(ways), shots)[None], tf.int32)
    centres = rng.standard_normal((ways, sizes.dimension))
    points = np.repeat(centres, shots, axis=0) + rng.standard_normal((ways * shots, sizes.dimension))
    support, query = tf.constant(points[None], tf.float32), tf.constant(centres[None, :1], tf.float32)

    @tf.function
    def plain(support: tf.Tensor, query: tf.Tensor) -> Any:
        with labels_checked():
            return head.fit_features(support, labels, ways)(query)

    @tf.function
    def calibrated(support: tf.Tensor, query: tf.Tensor) -> Any:
        with labels_checked():
            return head.calibrated_features(support, labels, ways)(query)

    works = {"plain": Work(lambda: plain(support, query)), "calibrated": Work(lambda: calibrated(support, query))}
    rates = interleaved(works, 2 * sizes.rounds + 1)
    ours, peer = (tuple(1000 / rate for rate in rates[key]) for key in ("calibrated", "plain"))
    what = f"calibrated answer, {name}, {ways} x {shots}, D={sizes.dimension}"
    return Measurement(what, "ms", ours, peer, "logits alone")
