"""The kept inputs, a folder a target: files that are whole, and those that once broke a parser."""

import pathlib

FOLDER = pathlib.Path(__file__).parent
NAMES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith("_")))


def inputs(name: str) -> list[bytes]:
    """The kept inputs of a target."""
    return [path.read_bytes() for path in sorted((FOLDER / name).iterdir())]
