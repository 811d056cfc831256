"""A trained run, read back: its plan, its backbone with the weights of a checkpoint, its data."""

import os
from collections.abc import Sequence

import keras

from tf_unravel import data
from tf_unravel.runs import config
from tf_unravel.runs.folder import RunFolder


class FinishedRun:
    """The run of a folder, rebuilt from its config.gin.

    Args:
        run_dir: the run's folder.
        bindings: gin bindings that change it for this reading.
        checkpoint: "best" (by validation), "last", or "initial" for the weights that training began with.
        adapts: whether the network will be adapted to tasks: then the run's threads_per_op counts.
        data_root: the folder of the images; None for the one that the run has recorded.

    Attributes:
        configuration: of the run, as it is read.
        step: of the checkpoint that was read.
        checkpoint: which that is, such as "best, step 1400".

    Raises:
        ConfigError: no run is there, or it has no checkpoint yet.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        bindings: Sequence[str] = (),
        checkpoint: str = "best",
        adapts: bool = False,
        data_root: str | os.PathLike[str] | None = None,
    ):
        self.folder = RunFolder(run_dir)
        text, recorded = self.folder.read_config(), self.folder.data_root()
        self.configuration = config.parse(bindings=bindings, text=text, root=data_root, recorded=recorded)
        self.plan = config.plan(self.configuration)
        self._elsewhere = not _same_folder(self.configuration.root, recorded)
        if adapts:
            self.plan.use_threads()
        self.learner = self.plan.build(self.folder.data_facts())
        self.step, self.checkpoint = self._restore(checkpoint)

    @property
    def backbone(self) -> keras.Model:
        """The extractor."""
        return self.learner.backbone

    def split(self, name: str) -> data.ClassImages:
        """One split of the run's data.

        Raises:
            ConfigError: a folder's classes split otherwise than when the run began, or it is not where it was.
        """
        root, given = self.configuration.root, self.configuration.root_given
        try:
            split = self.plan.dataset(split=name)
        except ValueError as error:
            if given or root is None or os.path.isdir(root):
                raise
            raise config.ConfigError(f"--run_dir {self.folder.path}: its images were in {root}, which is not there "
                                     "any more; say where they are by --data_root") from error
        self.folder.check_random_split(name, split, self._elsewhere)
        return split

    def _restore(self, checkpoint: str) -> tuple[int, str]:
        """Reads the weights; returns `step` and `checkpoint`."""
        checkpoints = self.folder.checkpoints
        if checkpoint == "initial":
            return 0, "initial (untrained)"
        if checkpoint == "best" and checkpoints.best.exists():
            try:
                step = checkpoints.restore(checkpoints.best, self.learner)["step"]
                return step, f"best, step {step}"
            except (OSError, ValueError) as error:
                raise config.ConfigError(f"{error}; give --checkpoint=last") from error
        facts = checkpoints.restore_latest(self.learner)
        if facts is None:
            raise config.ConfigError(f"--run_dir {self.folder.path}: no checkpoint yet; train it first")
        fallback = " (no validated checkpoint)" if checkpoint == "best" else ""
        return facts["step"], f"last, step {facts['step']}{fallback}"


def _same_folder(one: str | None, other: str | None) -> bool:
    return one == other or None not in (one, other) and os.path.realpath(str(one)) == os.path.realpath(str(other))
