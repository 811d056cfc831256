"""What a head is: it makes a classifier of a few labelled images.

    classifier = head.fit(backbone, support_images, support_labels, ways)
    logits = classifier(query_images)

Every head has this, whatever it reads. One with weights has `solve`, for what does not depend on the queries, and
`decide`: it is solved once, when it is fitted. A head is written against what it reads, though, and is given that by
the functions that evaluate, train and export:

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
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from tf_unravel.adaptation import calibration, open_set
from tf_unravel.adaptation.batchnorm import protocol_of
from tf_unravel.adaptation.calibration import Prior, Refit
from tf_unravel.adaptation.labels import Ways, checked_support


class Reads(enum.Enum):
    """What a head is given."""

    FEATURES = "features"
    INNER_PRODUCTS = "inner products"
    IMAGES = "images"


class Classifier:
    """What a head made of support sets: query images [T, Q, H, W, C] -> logits [T, Q, W], or `Calibrated`.

    Args:
        kept: tensors that it keeps of the support sets, in any structure.
        answer: (kept, query images) -> logits, or `Calibrated`.
    """

    def __init__(self, kept: Any, answer: Callable[[Any, tf.Tensor], Any]):
        self.kept, self.answer = kept, answer

    def __call__(self, query_images: tf.Tensor) -> Any:
        kept = tf.nest.map_structure(tf.convert_to_tensor, self.kept)
        return self.answer(kept, tf.convert_to_tensor(query_images))

    def in_variables(self) -> "Classifier":
        """The same, for a graph that is saved: a constant would be written into it, where two gigabytes fit."""
        return Classifier(tf.nest.map_structure(lambda v: tf.Variable(v, trainable=False), self.kept), self.answer)


class Calibrated(NamedTuple):
    """What a calibrated classifier says of query images.

    Attributes:
        probabilities: [T, Q, W], see `calibration`.
        logits: [T, Q, W], the head's own.
        p_known: [T, Q], the share of known images that look as strange or stranger, see `open_set`.
    """

    probabilities: tf.Tensor
    logits: tf.Tensor
    p_known: tf.Tensor


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

    _solved_once: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """A head whose answer is new does not go on with what its base solves, refits or reads for the old one."""
        super().__init_subclass__(**options)
        own = set(vars(cls))
        if "solve" in own:
            cls._solved_once = True
        elif "__call__" in own:
            cls._solved_once = False
        answers = own & {"__call__", "solve", "decide"}
        if answers and "logits" not in own and cls.reads is Reads.INNER_PRODUCTS:
            cls.reads = Reads.FEATURES
        if (answers or own & {"weights", "coefficients"}) and "refit" not in own:
            cls.refit = Head.refit  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Logits [T, Q, W] of the queries from what the head reads; differentiable, to train through it."""
        raise NotImplementedError

    def logits(self, inner: Any, support_labels: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Logits [T, Q, W] from inner products (`heads.Kernels`), of a head that reads these."""
        raise NotImplementedError

    def solve(self, support: tf.Tensor, support_labels: tf.Tensor, ways: Ways) -> Any:
        """What a classifier keeps of support features [T, S, D] and labels [T, S], tensors in any structure.

        For heads that have something to solve for once, such as weights. Without it a classifier keeps the features.
        """
        raise NotImplementedError

    def decide(self, solved: Any, query: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Logits [T, Q, W] of query features [T, Q, D], from what `solve` gave."""
        raise NotImplementedError

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
        on_features = self.fit_features(_features(backbone, support_images), labels, ways)
        return Classifier(on_features.kept, lambda kept, query: on_features.answer(kept, _features(backbone, query)))

    def fit_features(self, support: tf.Tensor, support_labels: tf.Tensor, ways: Ways) -> Classifier:
        """The same from features [T, S, D], of a head that reads them: query features [T, Q, D] -> logits."""
        if self._solved_once:
            solved = self.solve(support, support_labels, ways)
            return Classifier(solved, lambda kept, query: self.decide(kept, query, ways))
        return Classifier((support, support_labels), lambda kept, query: self(*kept, query, ways))

    def calibrated(
        self, backbone: keras.Model, support_images: tf.Tensor, support_labels: tf.Tensor, ways: Ways,
        prior: Prior | None = None,
    ) -> Classifier:
        """A classifier that says how sure it is, and whether an image is of none of the classes.

        The temperature and the similarities of known images come from the support set alone, by heads that are fitted
        without some of its images (see `calibration` and `open_set`). A head that reads images would have to adapt the
        network again for each: its probabilities are the softmax of its logits.

        Args:
            backbone, support_images, ways: see `fit`.
            support_labels: integers [T, S], the same for every task.
            prior: what is known of the network besides; `Prior()` by default.

        Returns:
            Query images [T, Q, H, W, C] -> `Calibrated`.

        Raises:
            ValueError: as `fit`; tasks of different labels.

        Example:
            >>> classifier = Ridge().calibrated(backbone, support_images[None], support_labels[None], ways=5)
            >>> probabilities, logits, p_known = classifier(query_images[None])
        """
        labels = checked_support(support_labels, ways)
        support = _features(backbone, support_images)
        if self.reads is not Reads.IMAGES:
            on_features = self.calibrated_features(support, labels, ways, prior)
            return Classifier(on_features.kept,
                              lambda kept, query: on_features.answer(kept, _features(backbone, query)))
        adapted = self.fit(backbone, support_images, labels, ways)
        known = _known_images(support, labels, ways, prior)

        def answer(kept: Any, query: tf.Tensor) -> Calibrated:
            logits = adapted.answer(kept[0], query)
            return Calibrated(tf.nn.softmax(logits), logits, known.answer(kept[1], _features(backbone, query)))

        return Classifier((adapted.kept, known.kept), answer)

    def calibrated_features(
        self, support: tf.Tensor, support_labels: tf.Tensor, ways: Ways, prior: Prior | None = None
    ) -> Classifier:
        """The same from features [T, S, D], of a head that reads them: query features [T, Q, D] -> `Calibrated`."""
        support = at_least_float32(support)
        fitted = self.fit_features(support, support_labels, ways)
        known = _known_images(support, support_labels, ways, prior)
        labels = calibration.common_labels(support_labels)
        sharpness = self._left_out(support, labels, ways, prior)[1]
        fit = tf.cast(fitted.answer(fitted.kept, support), tf.float64)
        temperature = calibration.margin(fit, labels) / sharpness  # [T]

        def answer(kept: Any, query: tf.Tensor) -> Calibrated:
            logits = fitted.answer(kept[0], query)
            probabilities = tf.nn.softmax(logits / tf.cast(kept[2], logits.dtype)[:, None, None])
            return Calibrated(probabilities, logits, known.answer(kept[1], query))

        return Classifier((fitted.kept, known.kept, temperature), answer)

    def left_out(
        self, support: tf.Tensor, support_labels: tf.Tensor, ways: Ways, prior: Prior | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What a head that reads features says of the support images, each by a fit without it.

        The fits are those that calibrate: each leaves one image of every class out, and a fifth of those of larger
        classes (`calibration.folds`).

        Args:
            support: features [T, S, D].
            support_labels, ways, prior: see `calibrated`.

        Returns:
            (calibrated probabilities [T, S, W], bool [S] whether the image was left out: not the only one of a class).
        """
        labels = calibration.common_labels(support_labels)
        logits, sharpness, counted = self._left_out(at_least_float32(support), labels, ways, prior)
        return tf.nn.softmax(sharpness[:, None, None] * logits), counted

    def _left_out(
        self, support: tf.Tensor, labels: tf.Tensor, ways: Ways, prior: Prior | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """z' [T, S, W] and b [T] of `calibration`, and which images [S] were left out."""
        fold = calibration.folds(labels, ways)
        refit = self.refit(support, labels, ways)
        logits = calibration.left_out_logits(refit, labels, fold, tf.shape(support)[0], ways)
        return logits, calibration.sharpness(logits, labels, fold >= 0, prior or Prior()), fold >= 0

    def refit(self, support: tf.Tensor, labels: tf.Tensor, ways: Ways) -> Refit:
        """Fits to a part of the support features [T, S, D] with labels [S]: see `calibration.Refit`."""

        def refitted(left: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            known = tf.gather(support, kept, axis=1)
            their_labels = tf.tile(tf.gather(labels, kept)[None], [tf.shape(support)[0], 1])
            asked = tf.concat([tf.gather(support, left, axis=1), known], axis=1)
            logits = self(known, their_labels, asked, ways)
            return logits[:, : tf.size(left)], logits[:, tf.size(left) :]

        return refitted

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


def _features(backbone: keras.Model, images: tf.Tensor) -> tf.Tensor:
    return task_features(backbone, tf.cast(images, tf.float32))


def _known_images(support: tf.Tensor, support_labels: tf.Tensor, ways: Ways, prior: Prior | None) -> Classifier:
    """Query features [T, Q, D] -> p_known [T, Q]."""
    labels = calibration.common_labels(support_labels)
    means = open_set.class_means(support, labels, ways)
    known = open_set.left_out_similarities(support, labels, means, ways)
    quantiles = (prior or Prior()).similarities

    def answer(kept: tuple[tf.Tensor, tf.Tensor], query: tf.Tensor) -> tf.Tensor:
        means, known = kept
        return open_set.p_known(open_set.similarities(tf.cast(query, means.dtype), means), known, quantiles)

    return Classifier((means, known), answer)


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
