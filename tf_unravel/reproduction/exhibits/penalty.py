"""How large a penalty's gradient was beside the loss's, as a training recorded it."""

import json
import pathlib
import statistics

from tf_unravel.runs import RunFolder

# Below this ratio no verdict is given on what a penalty does. The spread of the tasks' weights, which weight clustering
# acts on, falls by 13 % at a ratio of 0.03 and by 1.5 % at a tenth of it (conv4-32, 32x32): at 0.001 by about half a
# percent, far less than two trainings differ by. The paper's best coefficient, 5e-5, is at 0.000003.
LEAST_RATIO = 1e-3
RECORDED = ("train/pull", "at_validation/regularizer_gradient_share")
PACKED = "paper/gradient_ratio.json"  # in the folder of a run that came out of an archive


def gradient_ratio(run_dir: pathlib.Path) -> float | None:
    """The norm of the penalty's gradient over that of the loss's, median over a training.

    Reptile reports it at every step (`pull` of `learners.reptile`), classical training at each validation
    (`learners.gradient_share`). An archive (`archive.pack`) has the median in a file of its own in place of the logs.

    Args:
        run_dir: the run's folder.

    Returns:
        The ratio; None where the training recorded none.
    """
    try:
        lines = RunFolder(run_dir).metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return _packed(run_dir)
    found = []
    for line in lines:
        try:
            values = json.loads(line)
            found += [float(values[name]) for name in RECORDED if name in values]
        except (ValueError, LookupError, TypeError):  # a line of another kind, or one that a killed process left
            continue
    return statistics.median(found) if found else None


def _packed(run_dir: pathlib.Path) -> float | None:
    """What an archive has said of it."""
    try:
        return float(json.loads((run_dir / PACKED).read_text(encoding="utf-8"))["gradient_ratio"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
