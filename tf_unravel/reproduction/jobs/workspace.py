"""Where the runs of a scale are."""

import dataclasses
import pathlib
from collections.abc import Mapping

from tf_unravel.reproduction.jobs.scales import RunName, Scale


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A scale, and the folder that holds its runs: `<folder>/<dataset>/<method>@<network>/seed-<n>`.

    Args:
        folder: the folder.
        scale: the scale.
        roots: dataset -> the folder of its images, where it needs one.
        bindings: gin lines for all runs.
    """

    folder: pathlib.Path
    scale: Scale
    roots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bindings: tuple[str, ...] = ()

    def run_dir(self, run: RunName) -> pathlib.Path:
        """A run's folder."""
        return self.folder / str(run)

    def configuration(self, run: RunName) -> tuple[list[str], list[str]]:
        """(gin files, bindings) that train a run."""
        files, bindings = self.scale.configuration(run)
        return files, [*bindings, *self.bindings]

    def root(self, run: RunName) -> str | None:
        """Where a run's images are now; None for where it has recorded them."""
        return self.roots.get(run.dataset)
