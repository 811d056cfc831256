"""Processes that the benchmark starts: their command and environment, and what they answer."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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


def stream_module(module: str, *arguments: str) -> Iterator[Any]:
    """Runs a module and yields each line that it writes as JSON, when it comes.

    Raises:
        ChildProcessError: it failed; the message is its last line on standard error.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command(module, *arguments), env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            yield from map(json.loads, process.stdout or ())
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status:
            errors.seek(0)
            raise ChildProcessError(f"python -m {module} failed with status {status}: {last_line(errors.read())}")


def last_line(text: str) -> str:
    """The last line that is not blank, or ''."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
