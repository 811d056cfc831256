"""What may be published of a run: its files without the paths of the machine that trained it.

A path can name a person or a company. `environment.json` has paths as the folder of the images and in the commands that
started the training; `results.json` may have one as a title in a table of `evaluate`.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from tf_unravel.runs.folder import RunFolder
from tf_unravel.runs.records import read_record

_ABSOLUTE = re.compile(r"""((?<![\w./~-])(~[\w.-]*)?/|\b[A-Za-z]:[\\/])[^'",]*""")
_PLACEHOLDER = "PATH"


def portable(run_dir: pathlib.Path) -> dict[str, bytes]:
    """A trained run's config.gin, environment.json and results.json, for publication.

    environment.json has no `data_root`, and its commands have PATH for every absolute path; of results.json only the
    section `training` is there. Applied to a folder of such files, it gives the same bytes.

    Args:
        run_dir: the run's folder.

    Returns:
        Name of a file -> its content.

    Raises:
        ConfigError: no run is there, or a file is damaged.
    """
    folder = RunFolder(run_dir)
    environment = read_record(folder.environment)
    starts = environment.get("starts", [])
    cleaned = [{**start, "command": without_paths(start.get("command") or [])} for start in starts]
    return {
        folder.config.name: folder.read_config().encode("utf-8"),
        folder.environment.name: _json({**environment, "data_root": None, "starts": cleaned}),
        folder.results.name: _json({"training": folder.training_results()}),
    }


def without_paths(command: Sequence[str]) -> list[str]:
    """A command line with the bare name of its program, and PATH for every absolute path in its arguments.

    Example:
        >>> without_paths(["/opt/venv/bin/tf-unravel", "train", "--run_dir=/home/me/runs/a", "--gin_file=gin/a.gin"])
        ['tf-unravel', 'train', '--run_dir=PATH', '--gin_file=gin/a.gin']
    """
    program = [pathlib.PureWindowsPath(name).name for name in command[:1]]  # which knows both separators
    return [*program, *(_ABSOLUTE.sub(_PLACEHOLDER, argument) for argument in command[1:])]


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode("utf-8")
