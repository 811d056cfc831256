"""Scales: which data, runs and tasks stand behind the tables, and how much of each.

A scale is a file `gin/paper/<name>.gin`: `cifar_fs` (the paper's CIFAR-FS columns on two cores, with the originals that
the paper builds on), `paper` (the published settings, for a GPU machine), `desk` (an evening on two cores, real 32x32
photographs) and `smoke` (everything in minutes, on the embedded glyphs: it shows that the engine runs, not what is
true). It names a training for each extractor of the paper, `<method>@<network>`:

| method                                            | what trains it                                   |
|---------------------------------------------------|--------------------------------------------------|
| classical, feature_clustering, hyperplane_variation | cross-entropy, without and with a regularizer  |
| r2d2, metaoptnet, protonet                        | episodes, through the last layer                 |
| maml_1, maml_5, fomaml_1, fomaml_5                | MAML on 1-shot and on 5-shot tasks               |
| reptile, weight_clustering                        | Algorithm 2 without and with its penalty         |
| feature_clustering_batch, feature_clustering_pairs, hyperplane_variation_printed, hyperplane_variation_squared | a \
regularizer in one of its forms, where a scale compares them |

and network is one of the paper's: "r2d2", "resnet12" (its "MetaOptNet") and "conv4" (of MAML and Reptile). What a scale
has no training for stays empty in its tables.
"""

import dataclasses
import fnmatch
import functools
import pathlib
from collections.abc import Mapping, Sequence

import gin

from tf_unravel.runs import config

SCALES = ("cifar_fs", "paper", "desk", "smoke")

MINI_IMAGENET = "mini-ImageNet"

PENALTIES = {"feature_clustering": "R_FC", "hyperplane_variation": "R_HV", "weight_clustering": "weight clustering"}

# The parameter that says which form of its penalty a method has, and its forms without and with it
_FORMS = {
    "feature_clustering": ("FeatureClustering.pairs", "whole batch, as printed", "by pairs"),
    "hyperplane_variation": ("HyperplaneVariation.squared", "as printed", "squared"),
    "weight_clustering": ("Reptile.sum_over_batch", "mean loss", "summed loss"),
}

# What Scale.fine_tune may not bind
_RATE = ("FineTune.learning_rate", "FineTune.optimizer")

# What a coefficient of a method binds
_COEFFICIENTS = {
    "feature_clustering": "FeatureClustering.coefficient",
    "hyperplane_variation": "HyperplaneVariation.coefficient",
    "weight_clustering": "Reptile.weight_clustering",
}


def penalty_of(training: str) -> str:
    """The penalty of a training `<method>@<network>`, a key of PENALTIES; "" where it has none."""
    return next((name for name in PENALTIES if training.startswith(name)), "")


@dataclasses.dataclass(frozen=True, order=True)
class RunName:
    """One training; str() is also its folder's path.

    Args:
        dataset: of the scale.
        training: `<method>@<network>`.
        coefficient: of the method's penalty; None where it has none.
        seed: of the training.
    """

    dataset: str
    training: str
    coefficient: float | None
    seed: int

    def __str__(self) -> str:
        method, network = self.training.split("@")
        strength = "" if self.coefficient is None else f"-{self.coefficient:g}"
        return f"{self.dataset}/{method}{strength}@{network}/seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """What gin/paper/<name>.gin says.

    Args:
        name: of the scale.
        about: one sentence for captions: what is scaled down.
        datasets: our dataset -> the paper's, beside whose numbers it is shown.
        networks: the paper's network -> what stands for it here.
        runs: training -> its gin file (with `{dataset}` in the name where it differs), then bindings.
        bindings: of all runs.
        minutes: training -> how long it and its measurements take here, for the estimate; "" for all others.
        tasks: for accuracies under heads that only read features.
        adapted_tasks: under heads that adapt the network to each task.
        distance_tasks: fine-tuned for Figure 3.
        pairs: of classes for r_fc and r_hv.
        fine_tune: bindings of the "MAML" column of Tables 1 and 6, without the rate.
        fine_tune_rates: its rates; for every trained network and number of shots the best on the validation classes.
        trial_tasks: for each rate there.
        home: our dataset on which the tables are made that the paper has of mini-ImageNet alone; None for the one
            beside mini-ImageNet.
        seeds: of the trainings, where --seeds does not say.
        seeds_of: pattern of a training, such as "*@r2d2" -> the only seeds that it is trained with; the first that
            matches counts.
        queue: patterns of runs in the order in which they are trained; others come last.
        sizes: numbers of training images per class whose trainings `<method>@few<number>` show when the regularizers
            help.
        chosen: penalty -> (method, coefficient): the form and coefficient that the validation classes chose there.
        grid_seeds: of the trainings `<method>@few<number>`.
        short_seeds: of the trainings `<method>@short`, which compare coefficients of weight clustering.
        selection_seeds: of those that choose a form and coefficient, on the validation classes.
        extractors: name of a trained extractor that comes with the package -> its training on `home`, seed 0.
        reptile_loop: bindings of the fine-tuning of the classical network in Table 5.
        grid: coefficients of Table 8.
        sweep: coefficients of Table 9.
        swept_networks: of Table 8's grid.
        sweeps_repeat: whether Tables 8 and 9 are trained with every seed; otherwise with the first.
        timing_rounds: rounds of one step each in which Table 7's trainings take turns.
        theorem_draws: of each point of Theorem 1's curve.
    """

    name: str
    about: str
    datasets: Mapping[str, str]
    networks: Mapping[str, str]
    runs: Mapping[str, Sequence[str]]
    bindings: Sequence[str] = ()
    minutes: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"": 30.0})
    tasks: int = 2000
    adapted_tasks: int = 2000
    distance_tasks: int = 1000
    pairs: int = 10000
    fine_tune: Sequence[str] = ()
    fine_tune_rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1)
    trial_tasks: int = 200
    home: str | None = None
    seeds: Sequence[int] = (0,)
    seeds_of: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    queue: Sequence[str] = ()
    sizes: Sequence[int] = ()
    chosen: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    grid_seeds: Sequence[int] = (0,)
    short_seeds: Sequence[int] = ()
    selection_seeds: Sequence[int] = ()
    extractors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reptile_loop: Sequence[str] = ()
    grid: Sequence[float] = (0.02, 0.05, 0.1)
    sweep: Sequence[float] = (1e-5, 2.5e-5, 5e-5, 7.5e-5, 1e-4, 2.5e-4, 5e-4)
    swept_networks: Sequence[str] = ("r2d2", "resnet12")
    sweeps_repeat: bool = True
    timing_rounds: int = 21
    theorem_draws: int = 100_000

    def __post_init__(self) -> None:
        bound = [line for line in self.fine_tune if line.split("=")[0].strip() in _RATE]
        if bound or not self.fine_tune_rates:
            raise config.ConfigError(
                "the rate of the MAML columns is chosen from Scale.fine_tune_rates, such as (0.01, 0.1), or (0.01,) "
                f"for no choice: give it there, and leave {' and '.join(_RATE)} out of Scale.fine_tune. "
                f"Received: {bound or self.fine_tune_rates!r}"
            )

    def dataset_beside(self, published: str) -> str | None:
        """Our dataset that is shown beside one of the paper's."""
        return next((ours for ours, paper in self.datasets.items() if paper == published), None)

    def run(
        self, published: str, method: str, network: str, seed: int, coefficient: float | None = None
    ) -> RunName | None:
        """The run that stands for an extractor of the paper.

        Args:
            published: the paper's dataset.
            method: see the module.
            network: one of the paper's.
            seed: of the training.
            coefficient: of its penalty; None for the one that the training's gin file gives.

        Returns:
            Its name; None where the scale has no such training. Two trainings of one content are one run.
        """
        dataset, training = self.dataset_beside(published), f"{method}@{network}"
        if dataset is None or training not in self.runs:
            return None
        allowed = next((seeds for wanted, seeds in self.seeds_of.items() if fnmatch.fnmatch(training, wanted)), None)
        if allowed is not None and seed not in allowed:
            return None
        content = tuple(self.runs[training])
        training = next(name for name, other in self.runs.items() if tuple(other) == content)
        penalty = penalty_of(training)
        if penalty and coefficient is None:
            file, *bindings = (line.format(dataset=dataset) for line in content)
            coefficient = _coefficient_in(file, tuple(bindings), penalty)
        return RunName(dataset, training, coefficient, seed)

    @property
    def home_beside(self) -> str:
        """The dataset of the paper whose runs stand in the tables that it has of mini-ImageNet alone."""
        return self.datasets[self.home] if self.home else MINI_IMAGENET

    def place(self, run: RunName) -> int:
        """Where in the queue a run stands."""
        return next((i for i, wanted in enumerate(self.queue) if fnmatch.fnmatch(str(run), wanted)), len(self.queue))

    def configuration(self, run: RunName) -> tuple[list[str], list[str]]:
        """(gin files, bindings) of a run."""
        file, *bindings = (line.format(dataset=run.dataset) for line in self.runs[run.training])
        bindings = [*self.bindings, *bindings, f"run.seed = {run.seed}"]
        if run.coefficient is not None:
            bindings.append(f"{_COEFFICIENTS[penalty_of(run.training)]} = {run.coefficient!r}")
        return [file], bindings

    def penalty(self, run: RunName) -> str:
        """A run's penalty with its coefficient and form, such as "R_FC 0.05 (by pairs)"; empty where it has none."""
        if run.coefficient is None:
            return ""
        return f"{PENALTIES[penalty_of(run.training)]} {run.coefficient:g} ({self.form(run)})"

    def form(self, run: RunName) -> str:
        """Which form of its penalty the coefficient of a run multiplies."""
        files, bindings = self.configuration(run)
        return _form_in(tuple(files), tuple(bindings), penalty_of(run.training))

    def estimate(self, run: RunName) -> float:
        """Minutes that a run takes, as the scale's file says."""
        return self.minutes.get(run.training, self.minutes.get("", 30.0))


with gin.unlock_config():  # the user's program may have gin in use
    gin.external_configurable(Scale, module=__name__)


@functools.cache
def _coefficient_in(file: str, bindings: tuple[str, ...], penalty: str) -> float:
    name, parameter = _COEFFICIENTS[penalty].split(".")
    coefficient = config.parse([file], bindings).table.value(name, parameter)
    if coefficient is None:
        raise config.ConfigError(f"{file} must give {_COEFFICIENTS[penalty]}, by which a run of {penalty} is named")
    return float(coefficient)


@functools.cache
def _form_in(files: tuple[str, ...], bindings: tuple[str, ...], penalty: str) -> str:
    parameter, without, with_it = _FORMS[penalty]
    name, option = parameter.split(".")
    return with_it if config.parse(files, bindings).table.value(name, option) else without


def load(name: str) -> Scale:
    """Reads a scale.

    Args:
        name: of SCALES, or the path of a gin file of one's own.

    Raises:
        ConfigError: there is no such scale, or its file does not fit.
    """
    if name not in SCALES and not pathlib.Path(name).is_file():
        raise config.ConfigError(f"--scale is one of {', '.join(SCALES)}, or a gin file. Received: {name!r}")
    configuration = config.parse([f"gin/paper/{name}.gin" if name in SCALES else name])
    try:
        return configuration.table.make(Scale)
    except (TypeError, ValueError) as error:
        raise config.ConfigError(f"--scale {name}: {config.one_line(error)}") from error
