"""The JSON files of a run folder, read back: a person may have edited them, so what is used of them is checked."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tf_unravel.runs.config import ConfigError


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_object, value))


def _are_texts(value: Any) -> bool:
    return _is_object(value) and all(isinstance(each, str) for each in value.values())


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value: Any) -> bool:
    """Split -> names of classes, or nothing."""
    return value is None or _is_object(value) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value.values()
    )


# What each part of results.json and environment.json must be where it is there.
_FITS: dict[str, Callable[[Any], bool]] = {
    "training": _is_object,
    "evaluation": _are_objects,
    "evaluation_initial": _are_objects,
    "measurement": _are_objects,
    "measurement_initial": _are_objects,
    "data": _are_texts,
    "data_root": _is_text,
    "dealt": _are_names,
    "model": _is_object,
    "starts": _are_objects,
}


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        for name, fits in _FITS.items():
            if name in found and not fits(found[name]):
                raise ValueError(f"its {name} is not what belongs there")
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return found


def merged(before: Sequence[Any], rows: Sequence[Mapping[str, Any]], about: Sequence[str]) -> list[Any]:
    """Earlier rows and new ones, these in place of earlier ones that agree with them in the keys `about`."""
    new = [[row.get(key) for key in about] for row in rows]
    return [*(row for row in before if [row.get(key) for key in about] not in new), *rows]


def damaged(path: pathlib.Path, error: Exception) -> ConfigError:
    """What to raise over a file that cannot be used."""
    return ConfigError(f"{path} is damaged ({error}); mend it or move it away, and run the command again")
