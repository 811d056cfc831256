"""The process that `many_tasks` measures: makes the features, evaluates, writes what it took as one line of JSON."""

import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tf_unravel.reproduction.benchmark.tasks import evaluate, random_features

resource: ModuleType | None
try:
    import resource
except ImportError:  # not on Windows; the peak is not measured there
    resource = None


def outcome(
    num_images: int, num_classes: int, dimension: int, num_tasks: int, heads: Sequence[str], **_: Any
) -> dict[str, Any]:
    """Seconds of the evaluation, peak resident bytes of the process so far, and the mean accuracies."""
    features, split = random_features(num_images, num_classes, dimension)
    began = time.perf_counter()
    accuracies = evaluate(features, split, heads, (1, 5), num_tasks)
    seconds = time.perf_counter() - began
    means = {name: {shots: accuracy.mean for shots, accuracy in rows.items()} for name, rows in accuracies.items()}
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "accuracies": means}


def peak_bytes() -> int | None:
    """Peak resident bytes of this process; None where the system does not say."""
    status = pathlib.Path("/proc/self/status")
    # Linux's ru_maxrss would count what the process that started this one had.
    if status.exists() and (peak_kb := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(peak_kb[1])
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    sys.stdout.write(json.dumps(outcome(**json.loads(sys.argv[1]))) + "\n")
