"""Coverage-guided fuzzing of every parser of user data, by atheris: `make fuzz`, or `python -m tests.fuzz.fuzz`.

Each target (see `targets`) has a process of its own for some minutes, which begins with the kept inputs and with what
earlier runs found. It ends at the first uncaught exception, at an input that takes longer than 20 s, or at 2 GiB; the
input is then left in --found/<target>/, to be mended and added to corpus/. After each target a line says how many
inputs were tried, and how much the process grew between its first thousand inputs and its last.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

from tests.fuzz import corpus

_REPORT_SECONDS = 10
_LONGEST = {"images": 16384, "pickles": 8192}  # bytes of an input; 2,048 of the other targets


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
    options = [f"-max_total_time={round(60 * minutes)}", "-timeout=20", "-rss_limit_mb=2048", "-verbosity=0",
               f"-max_len={_LONGEST.get(name, 2048)}", f"-artifact_prefix={folder}{os.sep}"]
    command = [sys.executable, "-c", f"from tests.fuzz.fuzz import child; child({name!r}, {str(folder)!r})",
               *options, str(folder / "inputs"), str(corpus.FOLDER / name)]
    began = time.monotonic()
    with open(folder / "log", "wb") as log:
        status = subprocess.run(command, stdout=log, stderr=log).returncode
    seen = json.loads((folder / "seen.json").read_text()) if (folder / "seen.json").exists() else {}
    grown = f"grew {seen['mib'] - seen['mib_at_first']:+.0f} MiB to {seen['mib']:.0f}" if seen else "no input"
    how = "nothing found" if status == 0 else f"FOUND something, see {folder}"
    print(f"{name}: {seen.get('inputs', 0):,} inputs in {(time.monotonic() - began) / 60:.1f} minutes, {grown}; {how}",
          flush=True)
    return int(status != 0)


def child(name: str, folder: str) -> None:
    """Fuzzes one target in this process, whose arguments are libFuzzer's."""
    import atheris  # of the extra "fuzz" alone

    with atheris.instrument_imports(include=["tf_unravel", "csv", "gin"]):
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


def _resident_mib() -> float:
    """What this process holds in memory now, where the system tells; else the most that it ever held."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    sys.exit(main())
