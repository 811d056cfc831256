"""What the paper printed: every number of its Tables 1 to 9.

Goldblum et al., "Unraveling Meta-Learning: Understanding Feature Representations for Few-Shot Tasks", ICML 2020.
Accuracies are in %, on 5-way tasks, and the interval after an accuracy is one standard error, except where the paper
copied a row from another one: "*" marks 95 % intervals (rows from MAML's and Reptile's papers), "†" intervals of which
the paper does not say what they are in their source (R2-D2's). "-M" is meta-trained,
"-C" is classically trained with the same backbone. The backbone that the paper calls "MetaOptNet" is ResNet-12, and is
called so in the keys; names of models ("MetaOptNet-M") and of trainings ("MetaOptNet-SVM") stay as printed.

The rows below stand in the paper's order and with its digits, so that they can be compared with the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias


class Value(NamedTuple):
    """A printed number, and the interval after it where one is printed: one standard error."""

    mean: float
    error: float | None = None

    @property
    def standard_error(self) -> float | None:
        """One standard error, whatever is printed."""
        return self.error

    @property
    def mark(self) -> str:
        """What stands behind it wherever it is printed; MARKS says what it means."""
        return ""


class Copied95(Value):
    """A number copied from another paper, with that paper's 95 % interval."""

    __slots__ = ()
    mark = "*"

    @property
    def standard_error(self) -> float | None:
        return None if self.error is None else self.error / 1.96


class Copied(Value):
    """A number copied from another paper; what its interval is there, this paper does not say."""

    __slots__ = ()
    mark = "†"


MARKS = {
    "*": "* copied by the paper from another one, where the interval is 95 %, not one standard error; verdicts divide "
         "it by 1.96.",
    "†": "† copied by the paper from another one; taken as one standard error, as the paper says of all its intervals.",
}


Key: TypeAlias = tuple[Any, ...]  # names, numbers of shots, coefficients
Table: TypeAlias = dict[Key, Value]

_SHOTS = ((1,), (5,))
_HEADS = (("SVM",), ("RR",), ("ProtoNet",), ("MAML",))
_SEPARATION = (("R_FC",), ("R_HV",))
_DATASETS_SHOTS = (("mini-ImageNet", 1), ("mini-ImageNet", 5), ("CIFAR-FS", 1), ("CIFAR-FS", 5))
_DATASETS_TIMES = (
    ("mini-ImageNet", "epoch"),
    ("mini-ImageNet", "total"),
    ("CIFAR-FS", "epoch"),
    ("CIFAR-FS", "total"),
)
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _value(cell: str) -> Value:
    """Reads "62.64±0.31", "1.29", or a time as seconds: "44s", "16m", "16.8h"; all times are whole seconds."""
    if cell[-1] in _SECONDS:
        return Value(float(round(float(cell[:-1]) * _SECONDS[cell[-1]])))
    kind = {"*": Copied95, "†": Copied}.get(cell[-1], Value)
    return kind(*map(float, cell.rstrip("*†").split("±")))


def _table(columns: Sequence[Key], rows: Mapping[Key, str]) -> Table:
    """Reads one printed line per row: a cell for each column, between blanks or slashes."""
    return {
        row + column: _value(cell)
        for row, line in rows.items()
        for column, cell in zip(columns, line.replace("/", " ").split(), strict=True)
    }


# 1-shot mini-ImageNet. Key: (model, fine-tuning algorithm).
TABLE_1: Table = _table(
    _HEADS,
    {
        ("MetaOptNet-M",): "62.64±0.31 60.50±0.30 51.99±0.33 55.77±0.32",
        ("MetaOptNet-C",): "56.18±0.31 55.09±0.30 41.89±0.32 46.39±0.28",
        ("R2-D2-M",): "51.80±0.20† 55.89±0.31 47.89±0.32 53.72±0.33",
        ("R2-D2-C",): "48.39±0.29 48.29±0.29 28.77±0.24 44.31±0.28",
    },
)

# Class separation, lower is better separated. Key: (model, dataset, quantity).
TABLE_2: Table = _table(
    _SEPARATION,
    {
        ("R2-D2-M", "CIFAR-FS"): "1.29 0.95",
        ("R2-D2-C", "CIFAR-FS"): "2.92 1.69",
        ("MetaOptNet-M", "CIFAR-FS"): "0.99 0.75",
        ("MetaOptNet-C", "CIFAR-FS"): "1.84 1.25",
        ("R2-D2-M", "mini-ImageNet"): "2.60 1.57",
        ("R2-D2-C", "mini-ImageNet"): "3.58 1.90",
        ("MetaOptNet-M", "mini-ImageNet"): "1.29 0.95",
        ("MetaOptNet-C", "mini-ImageNet"): "3.13 1.75",
    },
)

# SVM on the features, except the row R2-D2, which is from the R2-D2 paper. Key: (training, backbone, dataset, shots).
TABLE_3: Table = _table(
    _DATASETS_SHOTS,
    {
        ("R2-D2", "R2-D2"): "51.80±0.20† 68.40±0.20† 65.3±0.2† 79.4±0.1†",
        ("Classical", "R2-D2"): "48.39±0.29 68.24±0.26 62.9±0.3 82.8±0.3",
        ("Classical w/ R_FC", "R2-D2"): "50.39±0.30 69.58±0.26 65.5±0.4 83.3±0.3",
        ("Classical w/ R_HV", "R2-D2"): "50.16±0.30 69.54±0.26 64.6±0.3 83.08±0.3",
        ("MetaOptNet-SVM", "ResNet-12"): "62.64±0.31 78.63±0.25 72.0±0.4 84.2±0.3",
        ("Classical", "ResNet-12"): "56.18±0.31 76.72±0.24 69.5±0.3 85.7±0.2",
        ("Classical w/ R_FC", "ResNet-12"): "59.38±0.31 78.15±0.24 72.3±0.4 86.3±0.2",
        ("Classical w/ R_HV", "ResNet-12"): "59.37±0.32 77.05±0.25 72.0±0.4 85.9±0.2",
    },
)

# Class separation on mini-ImageNet's training classes. Key: (model, quantity).
TABLE_4: Table = _table(
    _SEPARATION,
    {
        ("MAML-1",): "3.9406 1.9434",
        ("MAML-5",): "3.7044 1.8901",
        ("MAML-C",): "3.3487 1.8113",
    },
)

# mini-ImageNet. FOMAML's row is from MAML's paper, Reptile's from its own: there it is "Reptile + Transduction" (47.07
# and 62.74 without), the queries of a task normalised together. Key: (framework, shots).
TABLE_5: Table = _table(
    _SHOTS,
    {
        ("Classical",): "28.72±0.16 45.25±0.21",
        ("FOMAML",): "48.07±1.75* 63.15±0.91*",
        ("Reptile",): "49.97±0.32* 65.99±0.58*",
        ("W-Clustering",): "51.94±0.23 68.02±0.22",
    },
)

# 5-shot mini-ImageNet. Key: (model, fine-tuning algorithm).
TABLE_6: Table = _table(
    _HEADS,
    {
        ("MetaOptNet-M",): "78.63±0.25 76.96±0.23 76.17±0.23 70.14±0.27",
        ("MetaOptNet-C",): "76.72±0.24 74.48±0.24 73.37±0.24 71.32±0.26",
        ("R2-D2-M",): "68.40±0.20† 72.09±0.25 70.74±0.25 71.43±0.27",
        ("R2-D2-C",): "68.24±0.26 67.04±0.26 60.93±0.29 65.30±0.27",
    },
)

# Training time per epoch / in all, on one GPU; values in seconds. Key: (training, backbone, dataset, quantity).
TABLE_7: Table = _table(
    _DATASETS_TIMES,
    {
        ("R2-D2", "R2-D2"): "16m/16.8h 44s/45m",
        ("Classical", "R2-D2"): "20s/1.7h 4s/22m",
        ("Classical w/ R_FC", "R2-D2"): "20s/1.7h 4s/24m",
        ("Classical w/ R_HV", "R2-D2"): "20s/1.7h 4s/23m",
        ("MetaOptNet-SVM", "ResNet-12"): "1.5h/88.0h 4m/4.5h",
        ("Classical", "ResNet-12"): "1.4m/7.0h 14s/1.2h",
        ("Classical w/ R_FC", "ResNet-12"): "1.5m/7.4h 15s/1.3h",
        ("Classical w/ R_HV", "ResNet-12"): "1.3m/7.2h 16s/1.4h",
    },
)

# Coefficients include the factor C/N. Key: (backbone, regularizer, coefficient, head, dataset, shots).
TABLE_8: Table = _table(
    _DATASETS_SHOTS,
    {
        ("R2-D2", "R_FC", 0.02, "NN"): "48.27±0.29 69.13±0.26 63.11±0.35 83.31±0.25",
        ("R2-D2", "R_FC", 0.05, "NN"): "48.75±0.29 69.50±0.26 64.49±0.35 83.32±0.25",
        ("R2-D2", "R_FC", 0.1, "NN"): "48.72±0.29 67.39±0.25 62.98±0.36 81.07±0.26",
        ("R2-D2", "R_HV", 0.02, "NN"): "46.74±0.28 68.19±0.27 62.50±0.34 82.90±0.25",
        ("R2-D2", "R_HV", 0.05, "NN"): "49.11±0.29 68.88±0.26 63.61±0.35 83.21±0.25",
        ("R2-D2", "R_HV", 0.1, "NN"): "48.87±0.29 69.67±0.26 63.50±0.35 83.17±0.25",
        ("R2-D2", "R_FC", 0.02, "SVM"): "49.05±0.30 68.94±0.26 64.48±0.34 83.11±0.25",
        ("R2-D2", "R_FC", 0.05, "SVM"): "50.39±0.30 69.58±0.26 65.53±0.35 83.30±0.25",
        ("R2-D2", "R_FC", 0.1, "SVM"): "50.71±0.30 68.46±0.25 64.25±0.36 81.57±0.26",
        ("R2-D2", "R_HV", 0.02, "SVM"): "47.81±0.29 68.08±0.27 63.71±0.33 82.77±0.26",
        ("R2-D2", "R_HV", 0.05, "SVM"): "49.28±0.30 68.62±0.26 64.52±0.34 82.99±0.26",
        ("R2-D2", "R_HV", 0.1, "SVM"): "50.16±0.30 69.54±0.26 64.62±0.34 83.08±0.26",
        ("ResNet-12", "R_FC", 0.02, "NN"): "57.54±0.32 77.31±0.25 71.69±0.36 86.13±0.23",
        ("ResNet-12", "R_FC", 0.05, "NN"): "56.59±0.33 74.81±0.25 71.78±0.37 85.30±0.24",
        ("ResNet-12", "R_FC", 0.1, "NN"): "52.26±0.35 69.93±0.28 71.85±0.39 83.74±0.25",
        ("ResNet-12", "R_HV", 0.02, "NN"): "53.75±0.30 76.11±0.25 70.12±0.35 86.37±0.23",
        ("ResNet-12", "R_HV", 0.05, "NN"): "57.15±0.31 77.27±0.25 71.49±0.36 85.85±0.24",
        ("ResNet-12", "R_HV", 0.1, "NN"): "57.76±0.33 76.05±0.26 71.56±0.37 84.80±0.25",
        ("ResNet-12", "R_FC", 0.02, "SVM"): "59.38±0.31 78.15±0.24 72.32±0.30 86.31±0.24",
        ("ResNet-12", "R_FC", 0.05, "SVM"): "59.05±0.32 76.36±0.24 71.94±0.36 85.28±0.24",
        ("ResNet-12", "R_FC", 0.1, "SVM"): "56.73±0.35 73.70±0.26 71.08±0.36 83.49±0.25",
        ("ResNet-12", "R_HV", 0.02, "SVM"): "56.95±0.30 77.06±0.24 71.34±0.35 86.54±0.23",
        ("ResNet-12", "R_HV", 0.05, "SVM"): "59.36±0.31 77.97±0.24 72.00±0.36 85.87±0.24",
        ("ResNet-12", "R_HV", 0.1, "SVM"): "59.37±0.32 77.05±0.25 71.92±0.37 84.84±0.25",
    },
)

# Weight clustering on mini-ImageNet; 0.0 is Reptile as in Table 5. Key: (coefficient, shots).
TABLE_9: Table = _table(
    _SHOTS,
    {
        (0.0,): "49.97±0.32* 65.99±0.58*",
        (1.0e-5,): "51.42±0.23 67.16±0.22",
        (2.5e-5,): "51.25±0.24 67.55±0.22",
        (5.0e-5,): "51.94±0.23 68.02±0.22",
        (7.5e-5,): "51.40±0.24 67.59±0.22",
        (1.0e-4,): "50.92±0.23 67.91±0.22",
        (2.5e-4,): "50.65±0.23 65.95±0.23",
        (5.0e-4,): "51.37±0.23 66.98±0.23",
    },
)

TABLES: dict[str, Table] = {
    "table1": TABLE_1,
    "table2": TABLE_2,
    "table3": TABLE_3,
    "table4": TABLE_4,
    "table5": TABLE_5,
    "table6": TABLE_6,
    "table7": TABLE_7,
    "table8": TABLE_8,
    "table9": TABLE_9,
}
