"""Meta-learning of the feature extractor alone, the last layer being solved anew in each task (section 3.1).

    support features phi_s = f_theta(x_s),  query features phi_q = f_theta(x_q)
    logits = scale * head(phi_s, y_s, phi_q) + bias
    loss = mean over tasks and queries of cross-entropy(logits, y_q),  labels smoothed to 1 - eps and eps / (W - 1)

The head makes the method: Prototypes is ProtoNet (Snell 2017), Ridge is R2-D2 (Bertinetto 2019), SVM is MetaOptNet
(Lee 2019). Gradients flow through the head's solution into both support and query features.

| symbol  | here          | shape                        |
|---------|---------------|------------------------------|
| f_theta | backbone      | images -> [B, D]             |
| T       | tasks of a batch                              | |
| phi_s   | support       | [T, S, D]                    |
| phi_q   | query         | [T, WQ, D]                   |
| eps     | label_smoothing | scalar, 0.1 in MetaOptNet  |
| scale   | scale         | learnable scalar             |

BatchNorm. By default support and query images of all tasks of the batch go through the backbone in one pass, and are
normalised together: one kernel call, and the statistics the running averages will estimate. MetaOptNet makes two
passes (`passes=2`): support images are normalised among support images, queries among queries, so that a query's
feature does not depend on how many shots there are. In evaluation both use the running statistics.

Degenerate cases: label_smoothing=0 is the plain cross-entropy; learn_scale=False with scale=1 is the bare head.
"""

from typing import Any

import keras
import tensorflow as tf

from tf_unravel.adaptation.head import Head, Reads, task_features
from tf_unravel.adaptation.labels import labels_checked
from tf_unravel.backbones.modes import synchronize
from tf_unravel.checks import is_finite_number
from tf_unravel.data.sampling.tasks import Episode
from tf_unravel.heads import AnyHead, by_name
from tf_unravel.heads.users import as_head
from tf_unravel.learners.learner import (
    Learner,
    accuracy_of,
    check_episodes,
    checked_episodes,
    remade,
    ways_of,
    with_added,
)


def smoothed_cross_entropy(labels: tf.Tensor, logits: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Mean cross-entropy against 1 - eps on the true class and eps / (W - 1) on each other one (MetaOptNet).

    Keras's `label_smoothing=s` gives s / W to every class: s = eps W / (W - 1).
    """
    log_probabilities = tf.nn.log_softmax(logits)  # [T, WQ, W]
    ways = tf.shape(logits)[-1]
    others = epsilon / tf.cast(ways - 1, logits.dtype)
    targets = tf.one_hot(labels, ways, on_value=tf.constant(1.0 - epsilon, logits.dtype), off_value=others)
    return -tf.reduce_mean(tf.reduce_sum(targets * log_probabilities, axis=-1))


@keras.saving.register_keras_serializable(package="tf_unravel")
class Episodic(Learner):
    """Trains a backbone so that a head, solved on the support features, is right on the queries.

    Args:
        backbone: keras.Model, images -> features [B, D].
        head: see `tf_unravel.heads`; differentiable in support and query features.
        scale: what the logits are multiplied by at the start (MetaOptNet 1.0; R2-D2 10 on CIFAR-FS, 1e-4 on
            mini-ImageNet).
        learn_scale: whether the scale is trained.
        bias: whether a learnable bias is added to the logits, one for all classes, as R2-D2 has it; it cancels in
            the cross-entropy and stays 0.
        label_smoothing: eps of `smoothed_cross_entropy`; MetaOptNet 0.1.
        passes: 1 for support and query together through the backbone, 2 for one after the other (see the module).
        weight_decay: L2 penalty on every trainable weight, the scale included.

    Raises:
        ValueError: a head that is none on features, a scale that is no finite number, passes neither 1 nor 2,
            label_smoothing not in [0, 1).

    Example:
        >>> learner = Episodic(conv4(), heads.Ridge())
        >>> learner.compile(optimizer=keras.optimizers.Adam(1e-3))
        >>> learner.fit(data.episodes(split, shots=5, queries=6, tasks_per_batch=8), epochs=10, steps_per_epoch=100)

    Reference: Snell et al., NeurIPS 2017; Bertinetto et al., ICLR 2019; Lee et al., CVPR 2019.
    """

    def __init__(
        self,
        backbone: keras.Model,
        head: AnyHead,
        scale: float = 1.0,
        learn_scale: bool = True,
        bias: bool = False,
        label_smoothing: float = 0.0,
        passes: int = 1,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(backbone, weight_decay, **kwargs)
        if passes not in (1, 2):
            raise ValueError(f"passes is 1 or 2. Received: passes={passes!r}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1). Received: label_smoothing={label_smoothing}.")
        if not is_finite_number(scale):
            raise ValueError(f"Episodic.scale must be a finite number. Received: scale={scale!r}.")
        solver = as_head("Episodic.head", head)
        if solver.reads is Reads.IMAGES:
            raise ValueError("Episodic.head must read features, as heads.Ridge() does, in a gin file @Ridge(); "
                             f"fine-tuning is trained for by MAML and Reptile. Received: {solver.name}.")
        self.head, self.label_smoothing, self.passes = head, label_smoothing, passes
        self.initial_scale, self.learn_scale = scale, learn_scale
        initial = keras.initializers.Constant(scale)
        self.scale = self.add_weight(
            shape=(), initializer=initial, trainable=learn_scale, name="scale", dtype="float32"
        )
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias", dtype="float32") if bias else None
        synchronize(backbone)
        self.build()

    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Refused: without a support set there are no logits."""
        raise ValueError(
            "Episodic gives logits for episodes: learner.logits(episode, training=False), or learner.backbone(images) "
            "for features. Received: a call on images, or predict()."
        )

    def features(
        self, episode: Episode, training: bool, added: list[tf.Tensor] | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Support [T, S, D] and query [T, WQ, D] features in float32 at least, in one pass or two.

        Losses that layers of the backbone add are appended to `added`.
        """
        images = (episode.support_images, episode.query_images)  # [T, S, H, W, C], [T, WQ, H, W, C]
        added = [] if added is None else added
        if self.passes == 2:
            support = task_features(self.backbone, images[0], training)
            added += _of_the_call(self.backbone)  # a second call forgets them
            query = task_features(self.backbone, images[1], training)
            added += self.backbone.losses
            return support, query
        together = task_features(self.backbone, tf.concat(images, axis=1), training)  # [T, S + WQ, D]
        added += self.backbone.losses
        count = images[0].shape[1] or tf.shape(images[0])[1]
        return together[:, :count], together[:, count:]

    def logits(self, episode: Episode, training: bool, added: list[tf.Tensor] | None = None) -> tf.Tensor:
        """scale * head + bias, [T, WQ, W]; `added` as for `features`."""
        support, query = self.features(episode, training, added)
        with labels_checked():
            logits = self.own_head()(support, episode.support_labels, query, ways_of(episode))
        scale, bias = (tf.cast(v, logits.dtype) for v in (self.scale, 0.0 if self.bias is None else self.bias))
        return scale * logits + bias

    def objective(self, data: Episode, training: bool) -> dict[str, tf.Tensor]:
        added: list[tf.Tensor] = []
        episode = checked_episodes("Episodic", data)
        logits = self.logits(episode, training, added)
        loss = with_added(smoothed_cross_entropy(episode.query_labels, logits, self.label_smoothing), added)
        return {"loss": loss, "accuracy": accuracy_of(logits, episode.query_labels)}

    def check_batch(self, spec: Any) -> None:
        check_episodes("Episodic", spec)

    def own_head(self) -> Head:
        """The head of the training."""
        return as_head("Episodic.head", self.head)

    def get_config(self) -> dict[str, Any]:
        own = {"scale": self.initial_scale, "learn_scale": self.learn_scale, "bias": self.bias is not None,
               "label_smoothing": self.label_smoothing, "passes": self.passes}
        name = self.own_head().name
        if not name:
            raise ValueError("To be saved, a head needs a name, the one that heads.by_name knows its class by. "
                             f"Received: {type(self.head).__name__} without.")
        head = {"name": name, "arguments": dict(vars(self.head))}
        return {**super().get_config(), **own, "head": head}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Episodic":
        head = remade("Episodic.head", by_name, config["head"], "heads.by_name")
        return super().from_config({**config, "head": head})


def _of_the_call(backbone: keras.Model) -> list[tf.Tensor]:
    """The losses that a backbone's layers added in its last call, without those of its weights."""
    of_weights = sum(variable.regularizer is not None for variable in backbone.trainable_variables)
    losses: list[tf.Tensor] = backbone.losses
    return losses[: len(losses) - of_weights]
