"""The run folder: what a run leaves on the disk, and who may write to it."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_unravel
from tf_unravel import data
from tf_unravel.data.storage.digests import composed
from tf_unravel.files import NotWritten, locked, remove_leftovers, write_json
from tf_unravel.runs.checkpoints import Checkpoints
from tf_unravel.runs.config import ConfigError, Configuration, DataFacts, parse
from tf_unravel.runs.gin_files import read_text
from tf_unravel.runs.records import damaged, merged, read_record


class RunFolder:
    """A run's folder: config.gin, operative_config.gin, environment.json, checkpoints/, tensorboard/, metrics.jsonl,
    results.json, figures/.

    Args:
        path: the folder; it need not exist.
        worker: of several machines that train one run, which this is. The first, 0, owns the folder; another keeps
            its logs in `worker-<number>/` and reads the first one's checkpoints.
    """

    def __init__(self, path: str | os.PathLike[str], worker: int = 0):
        run = pathlib.Path(path)
        self.name = run.resolve().name
        self.path = run / f"worker-{worker}" if worker else run
        self.checkpoints = Checkpoints(run / "checkpoints", writes=worker == 0)
        self.tensorboard = self.path / "tensorboard"
        self.figures = self.path / "figures"
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.gin"
        self.operative_config = self.path / "operative_config.gin"
        self.environment = self.path / "environment.json"
        self.results = self.path / "results.json"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder and holds it for this process.

        Raises:
            ConfigError: it cannot be written, or another process trains in it.
        """
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.path / ".lock", wait=False))
            except BlockingIOError:
                raise ConfigError(f"--run_dir {self.path}: another process is training in it") from None
            except OSError as error:
                raise ConfigError(f"--run_dir {self.path} cannot be written: {error.strerror}") from error
            mine = (self.config, self.operative_config, self.environment, self.metrics)
            remove_leftovers(*mine, self.checkpoints.folder / "*")
            yield

    def check_config(self, configuration: Configuration) -> None:
        """Raises ConfigError for a folder that holds the run of another configuration."""
        if not self.config.exists():
            return
        before, text = self.read_config(), configuration.text
        with contextlib.suppress(ConfigError):  # what cannot be read is another configuration
            before = parse(text=before).text  # without a byte-order mark, or the folder of the images
        if before != text:
            old, new = set(before.splitlines()), set(text.splitlines())
            first = next((line for line in sorted(old ^ new) if not line.startswith("#")), "the order of its lines")
            name = first.split("=")[0]
            sides = [next((line.strip() for line in side if line.startswith(name)), "nothing") for side in (old, new)]
            raise ConfigError(
                f"--run_dir {self.path} holds a run of another configuration "
                f"(was: {sides[0]}; is now: {sides[1]}); choose another folder, or delete this one"
            )

    def read_config(self) -> str:
        """The text of config.gin.

        Raises:
            ConfigError: the folder holds no run, or its text is damaged.
        """
        try:
            return read_text(self.config)
        except OSError as error:
            train = f"train it first (tf-unravel train --run_dir={self.path} --gin_file=...)"
            raise ConfigError(
                f"--run_dir {self.path} holds no run; {train}. {self.config.name}: {error.strerror}"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{self.config} is damaged ({error}); put it back, or start a new folder") from error

    def check_data(self, splits: Mapping[str, data.ClassImages]) -> None:
        """Raises ConfigError where a split's images have changed since the run began, or its classes split otherwise.

        Args:
            splits: by name.
        """
        known = self.data_fingerprints()
        for name, split in splits.items():
            self.check_random_split(name, split)
            if known.get(name, split.fingerprint) != split.fingerprint:
                raise ConfigError(
                    f"--run_dir {self.path}: the images of the {name} split have changed since the run began "
                    f"(fingerprint {known[name][:12]}, now {split.fingerprint[:12]}); start a new run folder"
                )

    def check_random_split(self, name: str, split: data.ClassImages, elsewhere: bool = False) -> None:
        """Raises ConfigError for a split of a folder whose classes split otherwise than when the run began.

        Then classes that were learned from may be among them.

        Args:
            name: of the split.
            split: the split.
            elsewhere: the images are in another folder than the run's: other data, if no class has a name of then.
        """
        then, now = self.random_split(), split.random_split
        if not then or not now:
            return
        then = {part: [composed(each) for each in classes] for part, classes in then.items()}  # earlier runs did not
        strangers = sorted(set(split.class_names) - set(then.get(name, ())))
        other_data = elsewhere and not set().union(*then.values()) & set().union(*now.values())
        if strangers and not other_data:
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise ConfigError(
                f"--run_dir {self.path}: {strangers[0]!r}{more} would come to the {name} split, where it was not when "
                f"the run began: class folders were added, removed or renamed since, so that they split otherwise, and "
                f"some that were learned from could be tested on; put them back ({self.environment.name} names them), "
                f"give a folder that has {name}/<class>/<image>, or train a new run"
            )

    def record_start(
        self, splits: Mapping[str, data.ClassImages], facts: DataFacts, seed: int, first_step: int,
        root: str | None = None,
    ) -> None:
        """Writes environment.json, adding this start to those before it.

        Args:
            splits: by name: their fingerprints are recorded, and how classes were split at random.
            facts: what the model takes from the training data.
            seed: the run's seed.
            first_step: the step that this start goes on from.
            root: the folder of the images, if they are in one.
        """
        starts = read_record(self.environment).get("starts", [])
        start = {"time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                 "step": first_step, "command": sys.argv, **versions()}
        write_json(self.environment, {
            "seed": seed, "data_root": root, "data": {name: split.fingerprint for name, split in splits.items()},
            "random_split": next(iter(splits.values())).random_split,
            "model": dataclasses.asdict(facts), "starts": [*starts, start]})

    def data_facts(self) -> DataFacts:
        """What the model of this run took from its training data.

        Raises:
            ConfigError: the run was never started.
        """
        model = read_record(self.environment).get("model")
        if model is None:
            raise ConfigError(f"--run_dir {self.path}: it was never trained; train it first")
        try:
            mean, std = model["normalization"]
            return DataFacts(tuple(model["image_shape"]), model["num_classes"], (tuple(mean), tuple(std)))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.environment, error) from error

    def data_root(self) -> str | None:
        """The folder of the images that the run last trained on; None where there is none, or no run yet."""
        recorded = read_record(self.environment)
        if "data_root" in recorded:
            return recorded["data_root"]
        with contextlib.suppress(ConfigError):  # no run yet, or one whose damage others tell of
            return parse(text=self.read_config()).root  # of before it was recorded apart
        return None

    def random_split(self) -> dict[str, list[str]] | None:
        """Split -> its classes, where a folder's classes were split at random."""
        recorded = read_record(self.environment)
        return recorded.get("random_split", recorded.get("dealt"))  # of earlier versions

    def data_fingerprints(self) -> dict[str, str]:
        """Split -> fingerprint of the images that the run began with; empty where it was never started."""
        return read_record(self.environment).get("data", {})

    def evaluations(self) -> list[dict[str, Any]]:
        """The rows that `evaluate` left in results.json, those of untrained weights last."""
        results = read_record(self.results)
        return [row for section in ("evaluation", "evaluation_initial") for row in results.get(section, [])]

    def commit(self) -> str | None:
        """The git commit of this package that the run was begun with; None where it is not recorded."""
        starts = read_record(self.environment).get("starts") or [{}]
        return starts[0].get("commit")

    def training_results(self) -> dict[str, Any]:
        """How the training ended, as results.json has it; empty where it has not."""
        return read_record(self.results).get("training", {})

    def finished(self) -> bool:
        """Whether the training took all of its steps."""
        training = self.training_results()
        return bool(training) and training["step"] >= training["total_steps"]

    def check_writable(self) -> None:
        """Raises ConfigError for a folder that will not take the results, before they are computed.

        Either it cannot be written, or results.json is damaged.
        """
        check_writable("--run_dir", self.path)
        read_record(self.results)

    def update_results(self, section: str, values: Any) -> None:
        """Puts `values` under `section` of results.json, leaving the other sections; one process at a time.

        Raises:
            NotWritten: the disk is full, or the folder cannot be written.
        """
        with self._results() as results:
            results[section] = values

    def add_results(self, section: str, rows: Sequence[Mapping[str, Any]], about: Sequence[str]) -> None:
        """Adds rows to a section of results.json, in place of earlier ones about the same.

        Args:
            section: a list of rows.
            rows: the new ones.
            about: the keys that say what was measured, and not what came out.

        Raises:
            NotWritten: the disk is full, or the folder cannot be written.
        """
        with self._results() as results:
            results[section] = merged(results.get(section, ()), rows, about)

    @contextlib.contextmanager
    def _results(self) -> Iterator[dict[str, Any]]:
        """The content of results.json, written back when the block ends; one process at a time."""
        with contextlib.ExitStack() as held:
            try:
                if held.enter_context(locked(self.path / ".results.lock")):
                    remove_leftovers(self.results)
            except OSError as error:
                raise NotWritten(self.results, error) from error
            results = read_record(self.results)
            yield results
            write_json(self.results, results)


def check_writable(option: str, folder: pathlib.Path) -> None:
    """Makes a folder; raises ConfigError unless it can be made and written. `option` named it, such as "--out"."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {folder} cannot be written: {error.strerror}") from error


def commit_of(package: pathlib.Path) -> str | None:
    """The short git commit that a package is at, with "-dirty" where its work tree is modified.

    Args:
        package: the package's folder.

    Returns:
        The commit; None where the package is not at the root of a git work tree (an installed wheel, also one in a
        virtual environment inside of another project's work tree), or git is not there or fails.
    """
    root = package.resolve().parent
    if not (root / ".git").exists():  # a file in a linked work tree
        return None
    # Another repository is never asked: neither one further up nor one that the caller, such as a hook, works on.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, Any]:
    """Versions and device, as environment.json records them."""
    devices = tf.config.list_physical_devices("GPU")
    return {
        "tf_unravel": tf_unravel.__version__,
        "commit": commit_of(pathlib.Path(tf_unravel.__file__).parent),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "gin": importlib.metadata.version("gin-config"),
        "python": platform.python_version(),
        "device": f"{len(devices)} GPU" if devices else f"CPU, {os.cpu_count()} cores",
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
    }
