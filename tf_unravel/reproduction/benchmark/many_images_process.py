"""The process that `many_images` measures: evaluates, measures, writes what it took as one line of JSON."""

import contextlib
import json
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tf_unravel.commands import Question, Tasks, evaluate_models, measure_models

_POLL_SECONDS = 0.02


class Peak:
    """The largest anonymous memory, in bytes, of this process and those that it started; None but on Linux."""

    largest: int | None = None

    def look(self) -> None:
        """Takes the present one into account."""
        now = anonymous_bytes()
        if now is not None:
            self.largest = max(now, self.largest or 0)


def anonymous_bytes() -> int | None:
    """Resident memory of this process and its children that is no file's."""
    tasks = pathlib.Path("/proc/self/task")
    if not tasks.is_dir():
        return None
    processes = ["self", *(pid for task in tasks.iterdir() for pid in _read(task / "children").split())]
    found = [re.search(r"RssAnon:\s*(\d+) kB", _read(pathlib.Path("/proc", pid, "status"))) for pid in processes]
    return sum(1024 * int(each[1]) for each in found if each)


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""


@contextlib.contextmanager
def watched() -> Iterator[Peak]:
    """The peak while a block runs."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            peak.look()

    peak.look()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def outcome(model: str, data_root: str, out: str) -> dict[str, Any]:
    """Seconds of both commands, and the peak."""
    question, began = Question([model], data_root, out=out), time.perf_counter()
    with watched() as peak:
        evaluate_models(question, Tasks(num_tasks=100))
        measure_models(question)
    return {"seconds": time.perf_counter() - began, "peak_bytes": peak.largest}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    os.environ["TF_UNRAVEL_CACHE"] = given.pop("cache")
    sys.stdout.write(json.dumps(outcome(**given)) + "\n")
