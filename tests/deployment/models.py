"""A small trained-looking network, heads on it, and requests: what the tests of the deployment room share."""

import contextlib
import dataclasses
import io
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from tests.conftest import make_split
from tests.learners.problems import small_network
from tf_unravel import heads, learners
from tf_unravel.heads.inner_products import at_least_float32

SPLIT = make_split()


def network() -> keras.Model:
    """conv4 on 16x16 whose running statistics are those of pictures: features are of the order of 1."""
    backbone = small_network(filters=8)
    for _ in range(30):
        backbone(SPLIT.images.astype(np.float32), training=True)
    return backbone


def all_heads(backbone: keras.Model) -> dict[str, Any]:
    """Every head, and every way to fine-tune that a learner has."""
    keras.utils.set_random_seed(0)
    maml = learners.MAML(backbone, ways=3, inner_steps=2, inner_learning_rate=0.1, learn_rates=True)
    maml.rates.assign(np.linspace(0.01, 0.1, maml.rates.shape[0] * maml.rates.shape[1]).reshape(maml.rates.shape))
    reptile = learners.Reptile(backbone, ways=3, evaluation_steps=3, evaluation_batch=4)
    for moment in reptile.second_moments:
        moment.assign(tf.ones_like(moment) * 1e-4)
    reptile.steps_taken.assign(5.0)
    return {
        "prototypes": heads.Prototypes(),
        "ridge": heads.Ridge(),
        "svm": heads.SVM(),
        "linear": heads.Linear(),
        "fine_tune": heads.FineTune(steps=5, learning_rate=0.05),
        "fine_tune_in_batches": heads.FineTune(steps=5, optimizer=heads.Adam(0.003), batch_size=5, batchnorm="running",
                                               seed=3),
        "maml": maml.own_head(),
        "reptile": reptile.own_head(),
    }


@dataclasses.dataclass(frozen=True)
class Task:
    """Pictures of some classes, one shot of the first and more of each next one."""

    support: np.ndarray
    labels: np.ndarray
    query: np.ndarray


def task(ways: int = 3, queries: int = 7) -> Task:
    """Support pictures in a mixed order, 1 + 2 c of class c, and queries."""
    rng = np.random.default_rng(ways)
    labels = rng.permutation(np.repeat(np.arange(ways), 1 + 2 * np.arange(ways))).astype(np.int32)
    support = SPLIT.images[[30 * label + place for place, label in enumerate(labels)]]
    query = SPLIT.images[[30 * (i % ways) + 29 - i // ways for i in range(queries)]]
    return Task(support, labels, query)


def calibrated_in_python(backbone: keras.Model, head: Any, asked: Task) -> tuple[np.ndarray, ...]:
    """Probabilities [Q, W], logits [Q, W] and p_known [Q] of the calibrated head here."""
    ways = int(asked.labels.max()) + 1
    said = heads.as_head("head", head).calibrated(backbone, asked.support[None], asked.labels[None], ways)(
        asked.query[None])
    return tuple(value[0].numpy() for value in said)


def in_python(backbone: keras.Model, head: Any, asked: Task) -> np.ndarray:
    """The softmax of the head's logits here, [Q, W]."""
    ways = int(asked.labels.max()) + 1
    if head.reads is heads.Reads.IMAGES:
        logits = head(backbone, asked.support[None], asked.labels[None], asked.query[None], ways)[0]
    else:
        known, wanted = (at_least_float32(backbone(x.astype(np.float32), training=False))[None]
                         for x in (asked.support, asked.query))
        logits = head(known, asked.labels[None], wanted, ways)[0]
    return tf.nn.softmax(logits).numpy()


def file_of(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file's contents."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


@contextlib.contextmanager
def served(path: Any, port: int = 0, max_bytes: int = 1 << 24) -> Iterator[str]:
    """Serves an exported model in a thread, 0 at a free port; its address."""
    import uvicorn

    from tf_unravel.deployment.model import Model
    from tf_unravel.deployment.serving.server import application, name_of

    # Its own log configuration closes the handlers that are there, absl's among them, with the stream they write to.
    config = uvicorn.Config(application(Model(path), name_of(path), max_bytes), port=port, log_level="warning",
                            log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1/models/{name_of(path)}"
    finally:
        server.should_exit = True
        thread.join()
