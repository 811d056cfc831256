"""From gin files to a plan: every name that a gin file may use, and what a run is made of."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import logging
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import keras
import tensorflow as tf

from tf_unravel import backbones, data, heads
from tf_unravel.arguments import shown
from tf_unravel.evaluation import Accuracy
from tf_unravel.learners import Learner
from tf_unravel.runs import registry


class ConfigError(ValueError):
    """A configuration that cannot be used; its message is one line for the user."""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Validation:
    """How a run is watched while it trains, on the validation classes only.

    Args:
        every_epochs: validate after every so many epochs, and after the last; 0 for never (for data with too few
            validation classes), and then the last checkpoint is the one that counts.
        head: the head to validate with, None for the learner's own; the best checkpoint has the highest accuracy,
            averaged over `shots`.
        ways, shots, queries, num_tasks: the tasks; the same ones each time.
        projection_every: draw the LDA projection after every so many validations; 0 for never.
    """

    every_epochs: int = 1
    head: heads.AnyHead | None = dataclasses.field(default_factory=heads.SVM)
    ways: int = 5
    shots: Sequence[int] = (1, 5)
    queries: int = 15
    num_tasks: int = 500
    projection_every: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.shots, int):
            object.__setattr__(self, "shots", (self.shots,))
        if self.head is not None:
            heads.check_head("Validation.head", self.head)


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What a model takes from its training data; a run records it, so that reading the run needs no training images.

    Args:
        image_shape: (H, W, C).
        num_classes: of the training split.
        normalization: (mean, std) per channel, 0-255 units.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    normalization: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def of(cls, split: data.ClassImages) -> "DataFacts":
        """Those of a training split."""
        return cls(split.image_shape, split.num_classes, data.normalization_of(split))


def one_line(error: Exception) -> str:
    """An error's message on one line, without what gin adds about the call it happened in."""
    return " ".join(str(error).split("In call to configurable")[0].split())


DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")


def _either(names: Sequence[str]) -> str:
    """Names as a sentence lists them: a, b or c."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# What each part of a run is in a gin file. The first are called later, so that they stand without brackets.
_CALLED = {
    "dataset": "@load",
    "backbone": _either([f"@{name}" for name in backbones.by_name]),
    "learner": _either([f"@{learner.__name__}" for learner in registry.LABELS]),
    "optimizer": "@sgd, @adam or @annealed_sgd",
}
_MADE = {"batches": "@ClassPairs(), @Episodes() or @InnerBatches()", "validation": "@Validation()"}


@gin.configurable("run")
@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a training run is made of; gin fills it.

    Args:
        dataset: split name -> ClassImages.
        backbone: (input_shape, normalization) -> keras.Model.
        learner: (backbone, num_labels) -> learner.
        batches: what a training batch is (`ClassPairs`, `Episodes`, `InnerBatches`).
        optimizer: (steps_per_epoch, total_epochs) -> keras optimizer.
        epochs: how long to train.
        validation: how to watch it.
        normalization: (mean, std) per channel in 0-255 units, such as ((0, 0, 0), (255, 255, 255)) for pixels in
            0..1; None for the data's own.
        seed: of weights, batches, augmentation and dropout.
        checkpoint_minutes: save at least this often, besides after every epoch.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16"; heads and losses stay in float32.
        threads_per_op: threads that one operation may use on a CPU; 0 for all. 1 where a step works on several small
            tasks at once: they then run side by side, and no operation waits for its parts.
    """

    dataset: Callable[..., data.ClassImages]
    backbone: Callable[..., keras.Model]
    learner: Callable[..., keras.Model]
    batches: Any
    optimizer: Callable[..., keras.optimizers.Optimizer]
    epochs: int
    validation: Validation = dataclasses.field(default_factory=Validation)
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    seed: int = 0
    checkpoint_minutes: float = 10.0
    dtype: str = "float32"
    threads_per_op: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("threads_per_op", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"run.{name} must be a whole number from {least} on. Received: {value!r}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"run.dtype is {_either(DTYPES)}. Received: {self.dtype!r}")
        right = {name: callable(getattr(self, name)) for name in _CALLED}
        right["batches"] = hasattr(self.batches, "dataset") and not isinstance(self.batches, type)
        right["validation"] = isinstance(self.validation, Validation)
        for name, named in (_CALLED | _MADE).items():
            if not right[name]:
                raise ConfigError(f"run.{name} is {named}. Received: {shown(getattr(self, name))}")

    def use_threads(self) -> None:
        """Makes `threads_per_op` count; only before TensorFlow computes anything in this process, later in vain."""
        if self.threads_per_op:
            with contextlib.suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(self.threads_per_op)

    def build(self, facts: "DataFacts") -> keras.Model:
        """The learner, with weights drawn from `seed`.

        Raises:
            ConfigError: an argument that gin passes on does not fit.
        """
        keras.config.set_dtype_policy(self.dtype)
        keras.utils.set_random_seed(self.seed)
        try:
            normalization = self.normalization or facts.normalization
            backbone = self.backbone(input_shape=facts.image_shape, normalization=normalization)
            return self.learner(backbone=backbone, num_labels=self.batches.num_labels(facts.num_classes))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the configuration does not fit: {one_line(error)}") from error

    def build_optimizer(self, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """The optimizer, its schedule in steps.

        Raises:
            ConfigError: an argument that gin passes on does not fit.
        """
        try:
            return self.optimizer(steps_per_epoch, total_epochs=self.epochs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the configuration does not fit: {one_line(error)}") from error


def gin_folder() -> pathlib.Path:
    """Where the gin files that come with the package are: beside it in a checkout, inside it when installed."""
    package = pathlib.Path(__file__).resolve().parents[1]
    installed = package / "gin_files"
    return installed if installed.is_dir() else package.parent / "gin"


@functools.cache
def _search_gin_folder() -> None:
    gin.add_config_file_search_path(str(gin_folder()))


@contextlib.contextmanager
def _quiet_search() -> Iterator[None]:
    """gin logs an error for every place an include is not found in, before it finds it in the next."""

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Path not found")

    logging.getLogger().addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(wanted)


def _find(name: str) -> str:
    """The file a user means by --gin_file: a path, or one that comes with the package (with or without `gin/`)."""
    bundled = gin_folder() / pathlib.Path(name).as_posix().removeprefix("gin/")
    for candidate in (pathlib.Path(name), bundled, bundled.with_suffix(".gin")):
        if candidate.is_file():
            return str(candidate)
    known = {path.stem: f"gin/{path.relative_to(gin_folder())}" for path in gin_folder().glob("*/*.gin")}
    near = difflib.get_close_matches(bundled.stem, known, n=3)
    advice = f"do you mean {_either([known[stem] for stem in near])}?" if near else f"see the folder {gin_folder()}"
    raise ConfigError(f"--gin_file {name}: no such file; {advice}")


registry.register()


# What gin raises over a text that it cannot read, one that nests too deep or stops in the middle of a value included.
_UNREADABLE = (
    ValueError, SyntaxError, TypeError, AttributeError, LookupError, ImportError, RecursionError, MemoryError,
    tokenize.TokenError,
)  # fmt: skip


def parse(files: Sequence[str] = (), bindings: Sequence[str] = (), text: str = "") -> str:
    """Reads gin files, then bindings, and returns the whole configuration as one canonical text.

    Args:
        files: paths, or names under the package's `gin/`; later ones win.
        bindings: lines such as "run.epochs = 3"; they win over files.
        text: gin text that stands before both (a run's `config.gin`).

    Returns:
        The configuration, readable alone: parsing it again gives the same run.

    Raises:
        ConfigError: a file is missing or a line cannot be understood.
    """
    gin.clear_config()
    _search_gin_folder()
    try:
        with _quiet_search():
            if text:
                gin.parse_config(text)
            gin.parse_config_files_and_bindings([_find(name) for name in files], [], finalize_config=False)
            for binding in bindings:
                _bind(binding)
            _make_root_absolute()
            gin.finalize()
    except (*_UNREADABLE, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the configuration cannot be read: {_problem(error)}") from error
    return gin.config_str()


def _bind(binding: str) -> None:
    """One --gin_bindings line; an error names it."""
    try:
        gin.parse_config(binding)
    except _UNREADABLE as error:
        raise ConfigError(f"--gin_bindings {binding!r} cannot be read: {_problem(error)}") from error


# What a run passes to what it calls; a gin file has no say in it.
_PASSED_ON = ("self", "backbone", "num_labels", "input_shape", "split", "steps_per_epoch", "total_epochs")


def _problem(error: Exception) -> str:
    """What gin says of a line that it cannot read, and what to do about it."""
    line = one_line(error)
    if unknown := re.match(r"(Configurable '(\S+)' doesn't have a parameter named '\S+')\.? ?(.*)", line):
        said, name, place = unknown.groups()
        return f"{said} (its parameters are {', '.join(_parameters(name))}); {place[:1].lower()}{place[1:]}"
    if not isinstance(error, SyntaxError):
        return line
    line = re.sub(r"malformed node or string.*?Failed to parse token ('[^']*')", r"\1 is no value", line)
    values = "a number, True, None, a list, @name, %macro, or text, which needs quotes, such as load.root = 'folder'"
    return f"{line} (a value is {values})"


def _parameters(name: str) -> list[str]:
    """What a gin file may set of a thing."""
    thing = gin.get_configurable(name)
    function = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]  # of the class at hand
    parameters = inspect.signature(function).parameters
    return [parameter for parameter in parameters if parameter not in _PASSED_ON]


def _make_root_absolute() -> None:
    """A run is the same run whichever folder it is started from, and can be read from any other."""
    with contextlib.suppress(ValueError):  # no load.root is bound
        root = gin.query_parameter("load.root")
        if isinstance(root, str):
            gin.bind_parameter("load.root", str(pathlib.Path(root).expanduser().absolute()))


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def plan() -> Plan:
    """The plan of the configuration last parsed.

    Raises:
        ConfigError: a part of it is missing or does not fit.
    """
    given = gin.get_bindings("run", resolve_references=False)
    required = [field.name for field in dataclasses.fields(Plan) if _required(field)]
    missing = [f"run.{name}" for name in required if name not in given]
    if missing:
        advice = "give --gin_file gin/run/..., or add --gin_bindings, such as --gin_bindings 'run.epochs = 30'"
        raise ConfigError(f"the configuration does not say {', '.join(missing)}; {advice}")
    try:
        return Plan()  # type: ignore[call-arg]  # gin gives the arguments
    except ConfigError as error:
        raise ConfigError(one_line(error)) from error
    except ValueError as error:
        raise ConfigError(f"the configuration does not fit: {one_line(error)}") from error
    except (TypeError, RuntimeError) as error:
        line = one_line(error)
        raise ConfigError(f"the configuration does not describe a run (give --gin_file gin/run/...): {line}") from error


OWN = "own"


def heads_named(names: Sequence[str], learner: Learner, option: str = "--heads are") -> dict[str, heads.AnyHead]:
    """Heads by the names of `heads.by_name`, with the values that the configuration gives them.

    Args:
        names: of heads; "own" is the one that the learner trains for.
        learner: whose own head that is.
        option: what the user set, for the message.

    Raises:
        ConfigError: an unknown name, or none.
    """
    unknown = [name for name in names if name not in (*heads.by_name, OWN)]
    if unknown or not names:
        known = ", ".join((*heads.by_name, OWN))
        raise ConfigError(f"{option} among {known}. Received: {', '.join(unknown) or 'none'}")
    return {
        name: learner.own_head() if name == OWN else gin.get_configurable(heads.by_name[name].__name__)()
        for name in names
    }


def may_adapt(names: Sequence[str]) -> bool:
    """Whether one of these heads adapts the network itself; the learner's own may."""
    return any(name == OWN or getattr(heads.by_name.get(name), "on_images", False) for name in names)


def operative() -> str:
    """The values in use, defaults included; complete only after everything was built."""
    return gin.operative_config_str()


def describe(accuracy: Accuracy) -> dict[str, float | int | str]:
    """An accuracy as JSON, without the per-task values."""
    return {
        "mean": accuracy.mean,
        "standard_error": accuracy.standard_error,
        "ci95": accuracy.ci95,
        "num_tasks": accuracy.num_tasks,
        "batchnorm": accuracy.batchnorm,
        "adaptation": accuracy.adaptation,
    }
