"""What a head is, as a type: any object with a name and a call; no class of this package needs to be inherited from."""

from typing import Protocol, TypeAlias

import tensorflow as tf

Ways: TypeAlias = int | tf.Tensor
"""W, the number of classes of a task: an integer, or a scalar tensor of one."""


class Head(Protocol):
    """A classifier that is made of the features of a few labelled examples.

    Heads whose `logits(kernels, support_labels, ways)` gives the same logits from inner products alone are evaluated
    from one Gram matrix of the split, whatever the feature size. `translation_invariant = True` says that adding one
    vector to all features changes nothing; then they get the products of centred features, which are more precise.

    Example:
        >>> class NearestNeighbour:
        ...     name = "nearest_neighbour"
        ...     def __call__(self, support, support_labels, query, ways):
        ...         similarity = tf.matmul(query, support, transpose_b=True)  # [T, Q, S]
        ...         of_class = tf.one_hot(support_labels, ways)[:, None] > 0  # [T, 1, S, W]
        ...         return tf.reduce_max(tf.where(of_class, similarity[..., None], -1e9), axis=2)  # [T, Q, W]
        >>> tf_unravel.evaluate(backbone, NearestNeighbour(), test)
    """

    @property
    def name(self) -> str:
        """What tables call it."""

    def __call__(self, support: tf.Tensor, support_labels: tf.Tensor, query: tf.Tensor, ways: Ways) -> tf.Tensor:
        """Logits of the query features; differentiable in support and query where a backbone is trained through it.

        Args:
            support: [T, S, D] features.
            support_labels: integers [T, S] in 0..ways-1.
            query: [T, Q, D] features.
            ways: W.

        Returns:
            [T, Q, W]
        """
