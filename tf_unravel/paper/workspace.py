"""Where the runs of a scale are."""

import dataclasses
import pathlib
from collections.abc import Mapping

from tf_unravel.paper.scales import RunName, Scale


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
        return files, [*bindings, *self.bindings, *self.reading(run)]

    def reading(self, run: RunName) -> list[str]:
        """Bindings that a finished run is read with: where the images are now."""
        root = self.roots.get(run.dataset)
        return [f"load.root = {str(pathlib.Path(root).absolute())!r}"] if root else []
