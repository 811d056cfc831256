"""The linear system under the SVM and softmax heads, eliminated down to S x S matrices.

Both heads minimise 1/2 tr(A^T H A) plus something separable in the entries of A [S, W], with the rows of A summing to
zero. Their Newton steps, and the derivatives of their solutions, all read: find x [S, W] and nu [S] with

    (H + D_w) x_w + nu = r_w        for every way w, D_w diagonal and >= 0          (1)
    sum_w x_w = e                                                                   (2)
    1^T x_w = g_w                   (only with an unregularized bias)               (3)

The matrix is the SW x SW one of (H kron I_W), but its blocks couple through nu alone. With N_w = (H + D_w)^-1,

    x_w = N_w (r_w - nu),     (sum_w N_w) nu = sum_w N_w r_w - e,

W + 1 systems of S x S. D_w is given by the freedom f in [0, 1] of each entry, D = (1 - f) / f: f = 1 leaves an entry
free, f = 0 (D infinite) fixes it at zero, and the numbers in the computation,

    N_w = f^1/2 (f^1/2 H f^1/2 + I - f)^-1 f^1/2,

stay bounded at both ends. With (3), N_w loses its row sums: N_w - n n^T / m with n = N_w 1, m = 1^T N_w 1; shifting nu
by a constant then changes nothing, and C becomes definite by adding a multiple of 1 1^T.

| symbol | name          | shape        |
|--------|---------------|--------------|
| H      | hessian       | [T, S, S]    |
| f      | freedom       | [T, S, W]    |
| N_w    | responses     | [T, W, S, S] |
| C      | coupling      | [T, S, S]    |
| n, m   | sums, totals  | [T, W, S], [T, W] |
"""

from typing import NamedTuple

import tensorflow as tf


class Saddle(NamedTuple):
    """What `factorise` prepares and `solve` uses; see the module's symbols."""

    responses: tf.Tensor
    coupling: tf.Tensor
    sums: tf.Tensor | None
    totals: tf.Tensor | None


def factorise(hessian: tf.Tensor, freedom: tf.Tensor, balanced: bool = False) -> Saddle:
    """N_w for every way, and C = sum_w N_w.

    Args:
        hessian: H, [T, S, S], symmetric; positive definite, or semidefinite where no freedom is exactly 1.
        freedom: f, [T, S, W] in [0, 1]; every row needs an entry above 0.
        balanced: whether the column sums are prescribed too, (3).

    Returns:
        A Saddle for `solve`.
    """
    freedom = tf.transpose(freedom, [0, 2, 1])  # [T, W, S]
    root = tf.sqrt(freedom)
    blocks = (root[..., None] * hessian[:, None]) * root[..., None, :]  # [T, W, S, S]
    diagonal = freedom * tf.linalg.diag_part(hessian)[:, None] + (1.0 - freedom)
    # An inverse by LU: TensorFlow's batched Cholesky raises for the whole batch if rounding spoils one task.
    inverse = tf.linalg.inv(tf.linalg.set_diag(blocks, diagonal))
    responses = (root[..., None] * inverse) * root[..., None, :]  # [T, W, S, S]
    if not balanced:
        return Saddle(responses, tf.reduce_sum(responses, axis=1), None, None)
    sums = tf.reduce_sum(responses, axis=-1)  # [T, W, S]
    totals = tf.reduce_sum(sums, axis=-1)  # [T, W]
    responses -= sums[..., None] * (sums / totals[..., None])[..., None, :]
    coupling = tf.reduce_sum(responses, axis=1)  # [T, S, S]
    gauge = tf.reduce_mean(tf.linalg.diag_part(coupling), axis=-1)  # [T]
    return Saddle(responses, coupling + gauge[:, None, None], sums, totals)


def solve(
    saddle: Saddle, right: tf.Tensor, row_sums: tf.Tensor | float = 0.0, column_sums: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """x and nu of (1) and (2), and of (3) for a balanced Saddle.

    Args:
        saddle: from `factorise`.
        right: r, [T, S, W].
        row_sums: e, [T, S] or 0.
        column_sums: g, [T, W] with the same total as row_sums, or None for zeros; balanced only.

    Returns:
        (x [T, S, W], nu [T, S]).
    """
    right = tf.transpose(right, [0, 2, 1])  # [T, W, S]
    offset = tf.linalg.matvec(saddle.responses, right)  # [T, W, S]
    if saddle.sums is not None and column_sums is not None:
        offset += saddle.sums * (column_sums / saddle.totals)[..., None]
    excess = tf.reduce_sum(offset, axis=1) - row_sums  # [T, S]
    nu = tf.linalg.solve(saddle.coupling, excess[..., None])[..., 0]  # [T, S]
    x = offset - tf.linalg.matvec(saddle.responses, nu[:, None])  # [T, W, S]
    return tf.transpose(x, [0, 2, 1]), nu  # [T, S, W], [T, S]
