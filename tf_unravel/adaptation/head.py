"""What a head is: it makes a classifier of a few labelled images.

    classifier = head.fit(backbone, support_images, support_labels, ways)
    logits = classifier(query_images)

Every head has this, whatever it reads. On features it is `decide(solve(support, labels, ways), query, ways)`: what does
not depend on the queries is solved once, when the head is fitted. A head is written against what it reads, though, and
is given that by the functions that evaluate, train and export:

| reads                | its call                                                                            |
|----------------------|-------------------------------------------------------------------------------------|
| Reads.FEATURES       | head(support, support_labels, query, ways), on features                             |
| Reads.INNER_PRODUCTS | the same, and head.logits(kernels, support_labels, ways) from inner products alone  |
| Reads.IMAGES         | head(backbone, support, support_labels, query, ways, first_task=0), adapting the backbone |

Shapes: T tasks of W ways with S support and Q query examples; features [T, S, D] and [T, Q, D], logits [T, Q, W].
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tf_unravel.adaptation.batchnorm import protocol_of
from tf_unravel.adaptation.labels import Ways, checked_support


class Reads(enum.Enum):
    """What a head is given."""

    FEATURES = "features"
    INNER_PRODUCTS = "inner products"
    IMAGES = "images"


class Classifier:
    """What a head made of support sets: query images [T, Q, H, W, C] -> logits [T, Q, W].

    Args:
        kept: tensors that it keeps of the support sets, in any structure.
        logits: (kept, query images) -> logits.
    """

    def __init__(self, kept: Any, logits: Callable[[Any, tf.Tensor], tf.Tensor]):
        self._kept, self._logits = kept, logits

    def __call__(self, query_images: tf.Tensor) -> tf.Tensor:
        kept = tf.nest.map_structure(tf.convert_to_tensor, self._kept)
        return self._logits(kept, tf.convert_to_tensor(query_images))

    def in_variables(self) -> "Classifier":
        """The same, for a graph that is saved: a constant would be written into it, where two gigabytes fit."""
        return Classifier(tf.nest.map_structure(lambda v: tf.Variable(v, trainable=False), self._kept), self._logits)


class Head:
    """A classifier from a few labelled examples; the base of every head.

    A subclass sets `name` and writes the call that belongs to what it `reads` (see the module). A frozen dataclass
    suits: its fields are the settings that reports show.

    Attributes:
        name: what tables call it.
        reads: what it is given.
        translation_invariant: of one that reads inner products, whether adding one vector to all features changes
            nothing; it is then given the products of centred features, which are more precise.

    Example:
        >>> class NearestNeighbour(Head):
        ...     name = "nearest_neighbour"
        ...     def __call__(self, support, support_labels, query, ways):
        ...         similarity = tf.matmul(query, support, transpose_b=True)  # [T, Q, S]
        ...         of_class = tf.one_hot(support_labels, ways)[:, None] > 0  # [T, 1, S, W]
        ...         return tf.reduce_max(tf.where(of_class, similarity[..., None], -1e9), axis=2)  # [T, Q, W]
        >>> tf_unravel.evaluate(backbone, NearestNeighbour(), test)
    """

    name: ClassVar[str]
    reads: ClassVar[Reads] = Reads.FEATURES
    translation_invariant: ClassVar[bool] = False

    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Logits [T, Q, W] of the queries from what the head reads; differentiable, to train through it."""
        raise NotImplementedError

    def logits(self, inner: Any, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Logits [T, Q, W] from inner products (`heads.Kernels`), of a head that reads these."""
        raise NotImplementedError

    def solve(self, support: tf.Tensor, support_labels: tf.Tensor, ways: Ways) -> Any:
        """What a classifier keeps of support features [T, S, D] and labels [T, S], tensors in any structure.

        Here features and labels themselves; a head that has weights keeps those, and solves for them once.
        """
        return support, tf.convert_to_tensor(support_labels)

    def decide(self, solved: Any, query: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Logits [T, Q, W] of query features [T, Q, D], from what `solve` gave."""
        return self(*solved, query, ways)

    def fit(
        self, backbone: keras.Model, support_images: tf.Tensor, support_labels: tf.Tensor, ways: Ways
    ) -> Classifier:
        """Makes a classifier of each task's support set, eagerly or in a graph.

        Args:
            backbone: keras.Model, images -> [B, D]; it is not changed.
            support_images: [T, S, H, W, C], uint8 or float 0-255.
            support_labels: integers [T, S] in 0..ways-1, every class of each task among them.
            ways: W.

        Returns:
            Query images [T, Q, H, W, C] -> logits [T, Q, W].

        Raises:
            ValueError: labels that are not integers or outside 0..ways-1, a class without an example; a head that was
                learned for another number of ways.

        Example:
            >>> classifier = Ridge().fit(backbone, support_images[None], support_labels[None], ways=5)
            >>> labels = tf.argmax(classifier(query_images[None])[0], axis=-1)
        """
        labels = checked_support(support_labels, ways)

        def features(images: tf.Tensor) -> tf.Tensor:
            return task_features(backbone, tf.cast(images, tf.float32))

        def logits(solved: Any, query: tf.Tensor) -> tf.Tensor:
            return self.decide(solved, features(query), ways)

        return Classifier(self.solve(features(support_images), labels, ways), logits)

    def said_of(self, backbone: Any) -> tuple[str, str]:
        """What must be said beside an accuracy: what BatchNorm does, and how the backbone is adapted or ""."""
        return protocol_of(backbone, "running"), ""

    def transductive_on(self, backbone: keras.Model) -> bool:
        """Whether a query's logits depend on the other queries."""
        return False

    @property
    def learned_ways(self) -> int | None:
        """The number of classes that it was learned for; None where any will do."""
        return None

    def check_ways(self, ways: int) -> None:
        """Raises ValueError for tasks of another number of ways than it was learned for."""

    @property
    def title(self) -> str:
        """The name; that of the class where it has none."""
        return self.name

    def settings(self) -> str:
        """The name and the settings, such as "ridge, l2 50"."""
        return settings_text(self.title, self)


def settings_text(name: str, thing: Any) -> str:
    """A name, and the fields of a dataclass."""
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    values = [(field.name, vars(thing)[field.name]) for field in fields]
    return ", ".join([name, *(f"{key} {f'{v:g}' if isinstance(v, float) else v}" for key, v in values)])


def at_least_float32(values: tf.Tensor) -> tf.Tensor:
    """Casts half precision and integers up to float32; float32 and float64 stay."""
    values = tf.convert_to_tensor(values)
    return values if values.dtype in (tf.float32, tf.float64) else tf.cast(values, tf.float32)


def task_features(backbone: keras.Model, images: tf.Tensor, training: bool = False) -> tf.Tensor:
    """Features [T, B, D] of images [T, B, H, W, C], in one pass through the backbone."""
    images = tf.convert_to_tensor(images)
    # As numbers where they are known: a head then knows its sizes too.
    sizes = [known if known is not None else tf.shape(images)[axis] for axis, known in enumerate(images.shape[:2])]
    flat = tf.reshape(images, [-1, *images.shape[2:]])  # [T B, H, W, C]
    features = at_least_float32(backbone(flat, training=training))  # [T B, D]
    return tf.reshape(features, [*sizes, features.shape[-1]])  # [T, B, D]
