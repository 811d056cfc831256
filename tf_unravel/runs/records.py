"""The JSON files of a run folder, read back: a person may have edited them, so what is used of them is checked."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_unravel.runs.config import ConfigError

# What each part of results.json and environment.json must be where it is there, for `_fits`.
_PARTS: dict[str, Any] = {
    "training": dict,
    "evaluation": [dict],
    "evaluation_initial": [dict],
    "measurement": [dict],
    "measurement_initial": [dict],
    "data": {str: str},
    "data_root": (str, None),
    "random_split": ({str: [str]}, None),  # split -> names of classes
    "dealt": ({str: [str]}, None),  # its name before
    "model": dict,
    "starts": [dict],
}


def _fits(value: Any, form: Any) -> bool:
    """Whether a value has a form: a type, [form of every item], {str: form of every value}, or a tuple of choices."""
    if isinstance(form, tuple):
        return any(_fits(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(each, form[0]) for each in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_fits(each, form[str]) for each in value.values())
    return value is None if form is None else isinstance(value, form)


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
        for name, form in _PARTS.items():
            if name in found and not _fits(found[name], form):
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
