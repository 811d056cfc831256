"""What an exported graph refuses, by assertions inside it: a server turns them into a status 4xx with their message.

The checks of a request run one after the other, and before anything is computed from it: the first that fails is what
the client reads, and a label of two thousand millions allocates nothing.

| symbol  | name           | shape        |
|---------|----------------|--------------|
| S, Q    | support, query | [S, H, W, C], [Q, H, W, C], uint8 |
| y       | support_labels | int32 [S]    |
| W       | ways           | scalar, max y + 1 |
"""

import itertools
import re
from typing import NamedTuple

import tensorflow as tf

from tf_unravel.adaptation.labels import required

_DECODERS = re.compile(r"\{\{node [^}]*(DecodeJpeg|DecodePng|DecodeBmp|ExtractJpegShape)")


class Request(NamedTuple):
    """A few-shot task as the graph goes on with it, every check behind it.

    Attributes:
        support_images: uint8 [S, H, W, C].
        support_labels: int32 [S], each of 0..ways-1 at least once.
        query_images: uint8 [Q, H, W, C].
        ways: int32 scalar, at least 2.
    """

    support_images: tf.Tensor
    support_labels: tf.Tensor
    query_images: tf.Tensor
    ways: tf.Tensor


def said_by(error: tf.errors.OpError) -> str:
    """What a failed check, or a decoder, says, without what TensorFlow says around it; one line."""
    lines = str(error).splitlines()
    for line in lines:
        before, failed, message = line.partition("assertion failed: ")
        if failed:
            return message.replace("[", "", 1).replace("]", "", 1)
    for line, place in itertools.pairwise(lines):
        if _DECODERS.search(place):
            return f"an image file is damaged. Received: {line.strip()}"
    return lines[0]


def checked_images(name: str, images: tf.Tensor) -> tf.Tensor:
    """Images [B, H, W, C], refused where there are none or where they have no pixels."""
    sizes = tf.shape(images)
    message = f"{name} must be at least one image of at least one pixel."
    return required(images, (tf.reduce_all(sizes > 0), message, ["shape", sizes]))


def checked_request(
    support_images: tf.Tensor, support_labels: tf.Tensor, query_images: tf.Tensor, learned_ways: int | None = None
) -> Request:
    """A few-shot task, refused where it is none.

    Args:
        support_images: uint8 [S, H, W, C].
        support_labels: int32 [S].
        query_images: uint8 [Q, H, W, C].
        learned_ways: of the classifier that fine-tuning starts from; None where the ways are free.

    Returns:
        Request.
    """
    support_images = checked_images("support_images", support_images)
    query_images = checked_images("query_images", query_images)
    images, labels = tf.shape(support_images)[0], tf.shape(support_labels)[0]
    support_labels = required(
        support_labels,
        (images == labels, "support_labels must be one label for each support image.",
         ["images", images, "labels", labels]),
        (tf.reduce_min(support_labels) >= 0, "support_labels must be 0 or more.", [support_labels]),
    )
    # int64, and the classes counted by their labels: the largest label may be anything, and nothing has its size yet.
    ways = tf.cast(tf.reduce_max(support_labels), tf.int64) + 1
    present = tf.size(tf.unique(support_labels).y, tf.int64)
    rules = [
        (present == ways, "every class from 0 to the largest label needs a support image.", [support_labels]),
        (ways >= 2, "there must be two classes at least.", [support_labels]),
    ]
    if learned_ways is not None:
        learned = f"this model goes on from a classifier of {learned_ways} classes and takes labels 0 to"
        rules.append((ways == learned_ways, f"{learned} {learned_ways - 1}, each of them.", [support_labels]))
    request = (support_images, support_labels, query_images, tf.cast(ways, tf.int32))
    return Request(*required(request, *rules))


def finite(probabilities: tf.Tensor) -> tf.Tensor:
    """Probabilities [Q, W], refused where they are no numbers: no answer is better than a silent NaN."""
    message = "the head's answer is not finite: fine-tuning diverged, or the features overflow."
    return required(probabilities, (tf.reduce_all(tf.math.is_finite(probabilities)), message, [probabilities]))
