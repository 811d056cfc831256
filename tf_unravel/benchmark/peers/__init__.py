"""Plain PyTorch versions of what the benchmark compares with, written for it: idiomatic, batched where the peer is.

They need PyTorch, which is no requirement of the package; `peer` gives None without it, and the benchmark then prints
our own figures alone.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

from tf_unravel.data.decoding import num_cores

MISSING = "no PyTorch"
NOTE = "PyTorch is not installed, so there is nothing to compare with: pip install 'tf-unravel[benchmark]'."
QPTH_NOTE = "qpth is not installed (pip install qpth): MetaOptNet's SVM appears by its published rate alone."


def peer(module: str) -> ModuleType | None:
    """A module of this package, with PyTorch on all cores that this process may use; None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    # Its extension kills a process in which TensorFlow is loaded (both bring an LLVM); nothing here compiles by it.
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # None makes its import fail, as documented
    import torch

    torch.set_num_threads(num_cores())
    return importlib.import_module(f"{__name__}.{module}")
