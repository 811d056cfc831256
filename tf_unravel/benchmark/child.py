"""Processes that the benchmark starts: their command and environment, and what they answer."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import tf_unravel


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, with this very package importable (a checkout need not be installed)."""
    folder = str(pathlib.Path(tf_unravel.__file__).resolve().parents[1])
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_module(module: str, *arguments: str) -> Any:
    """Runs a module to its end and returns what it wrote as JSON in its last line.

    Raises:
        ChildProcessError: it failed; the message is its last line on standard error.
    """
    done = subprocess.run(command(module, *arguments), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"python -m {module} failed with status {done.returncode}: {last_line(done.stderr)}")
    return json.loads(last_line(done.stdout))


def last_line(text: str) -> str:
    """The last line that is not blank, or ''."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
