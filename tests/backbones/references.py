"""NumPy versions of the backbones' pieces, written from the definitions with plain loops."""

import numpy as np


def conv(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Cross-correlation, stride 1, zeros around the image so that the size stays."""
    size = kernel.shape[0]
    edge = size // 2
    padded = np.pad(x, [(0, 0), (edge, edge), (edge, edge), (0, 0)])
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            patch = padded[:, i : i + size, j : j + size]
            out[:, i, j] = np.tensordot(patch, kernel, axes=3)
    return out


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    mean = x.mean(axis=(0, 1, 2))
    variance = x.var(axis=(0, 1, 2))
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def leaky_relu(x: np.ndarray, slope: float = 0.0) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


def max_pool(x: np.ndarray, keep_odd: bool = False) -> np.ndarray:
    rows, columns = ((n + keep_odd) // 2 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return out


def randomize(model, seed: int = 0) -> dict[str, np.ndarray]:
    """Gives every weight an untidy value (gammas of both signs) and returns them by path."""
    rng = np.random.default_rng(seed)
    values = {}
    for variable in model.trainable_variables:
        value = rng.normal(0.3 if "gamma" in variable.path else 0.0, 0.5, variable.shape)
        variable.assign(value)
        values[variable.path] = value
    return values
