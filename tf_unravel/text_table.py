"""Tables for a terminal."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], ruled: bool = True) -> str:
    """Rows in aligned columns, the first one the heading.

    Args:
        rows: as many cells each.
        ruled: with a line under the heading.

    Example:
        >>> print(text_table([("head", "accuracy"), ("ridge", "61.2")]))
        head   accuracy
        ---------------
        ridge  61.2
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    return "\n".join([head, *(["-" * len(head)] if ruled else []), *lines])
