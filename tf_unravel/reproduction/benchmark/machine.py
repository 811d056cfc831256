"""What the figures were taken on, with a matrix product that says how fast the machine was at that moment."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

import numpy as np

from tf_unravel.machine import num_cores
from tf_unravel.reproduction.benchmark.timing import Work, interleaved, summary

_PACKAGES = ("tf_unravel", "tensorflow", "keras", "numpy", "torch", "qpth")
_BUSY = 0.5  # processes a core that run already


def facts(matrix_size: int = 2048) -> dict[str, Any]:
    """Cores, processor, versions, load, and the rate of a float32 matrix product in NumPy.

    Args:
        matrix_size: n; the product of two n x n matrices takes 2 n^3 operations.

    Returns:
        Plain values for JSON. `load_1_minute` well above 0 before the start means that others were computing too.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # before the product below adds to it
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in _PACKAGES},
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "load_1_minute": load,
        "matrix_size": matrix_size,
        "matrix_gflops": matrix_rate(matrix_size),
    }


def matrix_rate(size: int) -> float:
    """GFLOP/s of a float32 matrix product of size x size in NumPy, median of five."""
    left, right = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    product = Work(lambda: left @ right, 2e-9 * size**3)
    return summary(interleaved({"product": product}, rounds=5)["product"]).median


def describe(known: dict[str, Any]) -> str:
    """The facts as one line for people, and a warning if the machine was busy when they were taken."""
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items() if version)
    line = (
        f"{known['processor']}, {known['cores']} cores, {known['matrix_gflops']:.0f} GFLOP/s in a float32 matrix "
        f"product of {known['matrix_size']} (NumPy); Python {known['python']}, {versions}"
    )
    load = known["load_1_minute"]
    if load is not None and load > _BUSY * known["cores"]:
        line += f"\nBUSY: load average {load:.1f} before the start; that distorts every figure, most of all PyTorch's."
    return line


def _version(name: str) -> str | None:
    if name == "tf_unravel":
        import tf_unravel

        return tf_unravel.__version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
