"""The PyTorch versions in a clone's benchmarks/peers; an installed package prints our own figures alone."""

import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType

from tf_unravel.machine import num_cores

_CLONE = pathlib.Path(__file__).parents[3]
MISSING = "no PyTorch"
NOTE = "There is nothing to compare with: it needs a clone and pip install 'tf-unravel[benchmark]' (PyTorch)."
QPTH_NOTE = "qpth is not installed (pip install qpth): MetaOptNet's SVM appears by its published rate alone."


def peer(module: str) -> ModuleType | None:
    """A module of benchmarks/peers, PyTorch set to all cores that this process may use; None without either."""
    if importlib.util.find_spec("torch") is None or not (_CLONE / "benchmarks" / "peers").is_dir():
        return None
    if str(_CLONE) not in sys.path:
        sys.path.append(str(_CLONE))
    # Its extension kills a process in which TensorFlow is loaded (both bring an LLVM); nothing here compiles by it.
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # None makes its import fail, as documented
    import torch

    torch.set_num_threads(num_cores())
    return importlib.import_module(f"benchmarks.peers.{module}")
