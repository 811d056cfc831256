"""What constructors refuse: numbers outside their range, each in one line that names the argument the user set.

And what can only be warned of: images that are not in 0-255.
"""

import math
import numbers
import warnings
from typing import Any

import numpy as np

_LOOKED_AT = 64  # images of a batch


def is_finite_number(value: Any) -> bool:
    """Whether a value is a real number that is neither infinite nor NaN."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def refuse_negative(owner: str, **values: Any) -> None:
    """Raises ValueError unless every value is a finite number >= 0.

    Args:
        owner: whose arguments they are.
        **values: the arguments by name.

    Raises:
        ValueError: one is negative, not finite, or no number.

    Example:
        >>> refuse_negative("SGD", learning_rate=0.1)
    """
    for name, value in values.items():
        if not is_finite_number(value) or value < 0:
            raise ValueError(f"{owner}.{name} must be a finite number, 0 or more. Received: {name}={value!r}.")


def refuse_below(least: int, owner: str, **counts: Any) -> None:
    """Raises ValueError unless every count is a whole number of at least `least`, or None for the default.

    Args:
        least: the smallest count that makes sense.
        owner: whose arguments they are.
        **counts: the arguments by name.

    Raises:
        ValueError: one is smaller, or no whole number.

    Example:
        >>> refuse_below(1, "MAML", parallel_tasks=None)
    """
    for name, value in counts.items():
        if value is not None and (not isinstance(value, numbers.Integral) or value < least):
            raise ValueError(f"{owner}.{name} must be a whole number from {least} on. Received: {name}={value!r}.")


def warn_of_scaled_images(owner: str, images: Any) -> None:
    """Warns of float images that were scaled to 0..1, or standardised: models take 0-255 and scale inside.

    Such images are all but black to a model, and nothing fails. uint8 images are what they should be, however dark, and
    so are floats that hold whole numbers.

    Args:
        owner: what takes the images, for the message.
        images: an array or eager tensor [B, ...]; anything else passes.
    """
    dtype = str(getattr(images, "dtype", ""))
    if "float" not in dtype or not hasattr(images, "__array__") or not getattr(images, "shape", ()):
        return
    values = np.asarray(images[:_LOOKED_AT], np.float32)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    unit, standardised = 0 <= low and high <= 1 and np.any(values % 1), -16 < low < -0.5 and high < 16
    if unit or standardised:
        advice = "multiply by 255" if unit else "give the images as they were before that"
        warnings.warn(f"{owner} takes images in 0-255 and scales them inside; {advice}, unless your network is meant "
                      f"for others. Received: floats from {low:.3g} to {high:.3g}.", stacklevel=3)  # fmt: skip


def shown(value: Any) -> str:
    """A value as an error shows it: functions and classes by their name, without their address in memory."""
    return repr(getattr(value, "__name__", value))
