"""What constructors refuse: numbers outside their range, each in one line that names the argument the user set."""

import math
import numbers
from typing import Any


def is_finite_number(value: Any) -> bool:
    """Whether a value is a real number that is neither infinite nor NaN."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def refuse_negative(owner: str, **values: Any) -> None:
    """Refuses what is no finite number from 0 on.

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
    """Refuses what is no whole number from `least` on; None is for the default and passes.

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


def shown(value: Any) -> str:
    """A value as an error shows it: functions and classes by their name, without their address in memory."""
    return repr(getattr(value, "__name__", value))
