"""Coverage-guided fuzzing of every parser of user data, by atheris: `make fuzz`, or `python -m tests.fuzz.fuzz`.

Each target (see `targets`) has a process of its own for some minutes, which begins with the kept inputs and with what
earlier runs found. It ends at the first uncaught exception, at an input that takes longer than 20 s, or at 2 GiB; the
input is then left in --found/<target>/, to be mended and added to corpus/. Else the inputs that reach lines which no
kept one reaches are added to corpus/. After each target a line says how many inputs were tried, how much of a processor
that took, and how much the process grew between its first thousand inputs and its last.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.fuzz import corpus

_REPORT_SECONDS = 10
_LONGEST = {"images": 16384, "pickles": 8192}  # bytes of an input; 2,048 of the other targets
_KEPT_BYTES, _KEPT_LENGTH = 8000, 1500  # of all that a run adds to corpus/ for a target, and of one input
_SOURCES = tuple(f"{os.sep}{name}" for name in ("tf_unravel", "PIL", "gin", "csv.py"))


def main() -> int:
    """Fuzzes the targets, one after the other; 1 where an input was found that breaks one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12, help="for each target; default 12")
    parser.add_argument("--targets", default=",".join(corpus.NAMES), help="default: all")
    parser.add_argument("--found", default="build/fuzz", help="a folder for new inputs; default build/fuzz")
    arguments = parser.parse_args()
    return max(_run(name, arguments.minutes, pathlib.Path(arguments.found)) for name in arguments.targets.split(","))


def _run(name: str, minutes: float, found: pathlib.Path) -> int:
    """One target in a process of its own."""
    folder = found / name
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    (folder / "seen.json").unlink(missing_ok=True)
    options = [f"-max_total_time={round(60 * minutes)}", "-timeout=20", "-rss_limit_mb=2048", "-verbosity=0",
               f"-max_len={_LONGEST.get(name, 2048)}", f"-artifact_prefix={folder}{os.sep}"]
    began, before = time.monotonic(), _processor_minutes()
    status = _in_process("child", name, folder, *options, str(folder / "inputs"), str(corpus.FOLDER / name))
    took, worked = (time.monotonic() - began) / 60, _processor_minutes() - before
    if status == 0:
        status = _in_process("keep", name, folder)
    seen = json.loads((folder / "seen.json").read_text()) if (folder / "seen.json").exists() else {}
    grown = f"grew {seen['mib'] - seen['mib_at_first']:+.0f} MiB to {seen['mib']:.0f}" if seen else "no input"
    how = f"nothing found, {seen.get('kept', 0)} inputs kept" if status == 0 else f"FOUND something, see {folder}"
    print(f"{time.strftime('%Y-%m-%d %H:%M')} {name}: {seen.get('inputs', 0):,} inputs in {took:.1f} minutes "
          f"({worked:.1f} of them on a processor), {grown}; {how}", flush=True)
    return int(status != 0)


def _in_process(function: str, name: str, folder: pathlib.Path, *options: str) -> int:
    """Calls a function of this file in a new process; its status."""
    code = f"from tests.fuzz import fuzz; fuzz.{function}({name!r}, {str(folder)!r})"
    with open(folder / f"{function}.log", "wb") as log:
        return subprocess.run([sys.executable, "-c", code, *options], stdout=log, stderr=log).returncode


def child(name: str, folder: str) -> None:
    """Fuzzes one target in this process, whose arguments are libFuzzer's."""
    import atheris  # of the extra "fuzz" alone

    with atheris.instrument_imports(include=["tf_unravel", "PIL", "csv", "gin"]):
        from tests.fuzz import targets

        target = targets.TARGETS[name]
        target(b"")  # what it imports late
    seen = {"inputs": 0, "mib_at_first": 0.0, "mib": 0.0}
    told = time.monotonic()

    def one(data: bytes) -> None:
        nonlocal told
        target(data)
        seen["inputs"] += 1
        if seen["inputs"] == 1000:
            seen["mib_at_first"] = _resident_mib()
        if time.monotonic() - told > _REPORT_SECONDS:
            told, seen["mib"] = time.monotonic(), _resident_mib()
            pathlib.Path(folder, "seen.json").write_text(json.dumps(seen))

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


def keep(name: str, folder: str) -> None:
    """Copies what was found to corpus/, the smallest first, where it reaches lines that nothing kept reaches."""
    from tests.fuzz import targets

    target, reached, room, kept = targets.TARGETS[name], set(), _KEPT_BYTES, 0
    target(b"")
    for data in corpus.inputs(name):
        reached |= _lines(target, data)
    for path in sorted(pathlib.Path(folder, "inputs").iterdir(), key=lambda path: path.stat().st_size):
        data = path.read_bytes()
        lines = _lines(target, data)
        if lines - reached and len(data) <= min(room, _KEPT_LENGTH):
            shutil.copy(path, corpus.FOLDER / name / f"found-{path.name[:12]}")
            reached, room, kept = reached | lines, room - len(data), kept + 1
    seen = pathlib.Path(folder, "seen.json")
    seen.write_text(json.dumps({**json.loads(seen.read_text()), "kept": kept}))


def _lines(target: Callable[[bytes], None], data: bytes) -> set[tuple[str, int]]:
    """The lines (file, number) that an input reaches, in the parsers and what they call."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not any(source in file for source in _SOURCES):
            return None
        if event == "line":
            lines.add((file, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return lines


def _processor_minutes() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def _resident_mib() -> float:
    """What this process holds in memory now, where the system tells; else the most that it ever held."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    sys.exit(main())
