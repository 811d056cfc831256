"""From gin files to a configuration: a value that no other configuration changes, and the plan that it describes."""

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import gin

from tf_unravel import data, heads
from tf_unravel.runs import registry
from tf_unravel.runs.gin_files import (
    UNREADABLE,
    ConfigError,
    find,
    gin_folder,
    one_line,
    problem,
    quiet_search,
    read_text,
    search_gin_folder,
)
from tf_unravel.runs.gin_table import Deferred, GinTable
from tf_unravel.runs.plan import OWN, DataFacts, Plan, Validation, heads_named, may_adapt

__all__ = [
    "OWN", "ConfigError", "Configuration", "DataFacts", "Plan", "Validation", "gin_folder", "heads_named", "may_adapt",
    "one_line", "parse", "plan",
]

_log = logging.getLogger(__name__)

# Full names, in case the user has others that end alike
_RUN, _LOAD = f"{__name__}.run", "tf_unravel.data.load"

with gin.unlock_config():  # the user's program may have gin in use
    registry.register()
    gin.external_configurable(Validation, module=__name__)
    gin.external_configurable(Plan, "run", module=__name__, denylist=("heads",))


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What gin files and bindings say, apart from every other configuration; `parse` makes it.

    Args:
        text: as canonical gin text, readable alone: parsing it again gives the same run. Where the images lie is no
            part of it.
        root: the folder of the images, absolute; None where nothing says it.
        root_given: whether the one who asked said where the images are, and not the run's record.
        table: the bindings.
    """

    text: str
    root: str | None
    root_given: bool
    table: GinTable = dataclasses.field(repr=False, compare=False)

    def dataset_setting(self, name: str, default: Any = None) -> Any:
        """A setting of the data, such as "resize"; `default` where it is not bound."""
        found = self.table.value(_LOAD, name, _dataset_scopes(self.table))
        return default if found is None else found

    def statements(self) -> list[str]:
        """The text without its comments, one setting each; a long one goes on in indented lines."""
        found: list[str] = []
        for line in self.text.splitlines():
            if line.startswith(" "):
                found[-1] += f"\n{line}"
            elif line and not line.startswith("#"):
                found.append(line)
        return found

    def operative(self) -> str:
        """The values in use, defaults included; complete only after everything was built."""
        with self.table.in_force():
            return gin.operative_config_str()


def parse(
    files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    text: str = "",
    root: str | os.PathLike[str] | None = None,
    recorded: str | None = None,
) -> Configuration:
    """Reads gin files, then bindings.

    Args:
        files: paths, or names under the package's `gin/`; later ones win.
        bindings: lines such as "run.epochs = 3"; they win over files.
        text: gin text that stands before both (a run's `config.gin`).
        root: the folder of the images (--data_root); wins over a `load.root` in files and bindings, which says that
            it belongs here.
        recorded: the folder that a run has recorded, for when none of these says it; wins over one in `text`, where
            runs had it before.

    Raises:
        ConfigError: a file is missing or a line cannot be understood.
    """
    table = GinTable()
    try:
        with quiet_search(), table.in_force():
            search_gin_folder()
            if text:
                _import(text)
                gin.parse_config(text.removeprefix("\ufeff"))
            before = _take_root(table)
            found_files = [find(name) for name in files]
            for path in found_files:
                _import(read_text(path))
            gin.parse_config_files_and_bindings(found_files, [], finalize_config=False)
            for binding in (each.removeprefix("\ufeff") for each in bindings):
                try:
                    gin.parse_config(binding)
                except UNREADABLE as error:
                    raise ConfigError(f"--gin_bindings {binding!r} cannot be read: {problem(error)}") from error
                registry.register_heads()
            gin.finalize()  # refuses macros that are not there
            bound = _take_root(table)
            text = gin.config_str()
            table.forget_use()
    except (*UNREADABLE, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the configuration cannot be read: {problem(error)}") from error
    if bound is not None:
        _log.warning("load.root still works, but where the images lie is no part of a configuration any more: give "
                     "--data_root=%s instead", shlex.quote(bound))
    given = root if root is not None else bound
    found = next((each for each in (given, recorded, before) if each is not None), None)
    configuration = Configuration(text, None if found is None else _absolute(found), given is not None, table)
    dataset = table.value(_RUN, "dataset")
    if root is not None and _is_load(dataset) and configuration.dataset_setting("name") == "glyphs":
        raise ConfigError(f"--data_root is for data in files, and this run's are the embedded glyphs. Received: {root}")
    return configuration


def _import(text: str) -> None:
    """Runs a text's imports before the text is parsed: a module may add heads to `heads.by_name`."""
    for line in re.findall(r"^import [\w.]+$", text, re.MULTILINE):
        with contextlib.suppress(*UNREADABLE):  # said when the text is parsed
            gin.parse_config(line)
    registry.register_heads()


def _dataset_scopes(table: GinTable) -> list[str]:
    """Those that the run's data are loaded in, as in `run.dataset = @mine/load`."""
    dataset = table.value(_RUN, "dataset")
    return dataset.scopes if _is_load(dataset) else []


def _is_load(dataset: Any) -> bool:
    return isinstance(dataset, Deferred) and dataset.wrapped is data.load


def _take_root(table: GinTable) -> str | None:
    """Takes `load.root` out of a configuration."""
    table.defer()
    root = table.value(_LOAD, "root", _dataset_scopes(table))
    table.remove(_LOAD, "root")
    if root is not None and not isinstance(root, str):
        raise ConfigError(f"load.root, better --data_root, is a folder's name in quotes. Received: {root!r}")
    return root


def _absolute(root: str | os.PathLike[str]) -> str:
    """A run is the same run whichever folder it is started from, and can be read from any other."""
    if not os.fspath(root):
        raise ConfigError(f"--data_root is the folder of the images. Received: {root!r}")
    return str(pathlib.Path(root).expanduser().absolute())


def plan(configuration: Configuration) -> Plan:
    """The plan of a configuration.

    Raises:
        ConfigError: a part of it is missing or does not fit.
    """
    table = configuration.table
    given = table.bound(_RUN)
    optional = {name for name, each in inspect.signature(Plan).parameters.items() if each.default is not each.empty}
    missing = [f"run.{field.name}" for field in dataclasses.fields(Plan) if field.name not in {*optional, *given}]
    if missing:
        advice = "give --gin_file gin/run/..., or add --gin_bindings, such as --gin_bindings 'run.epochs = 30'"
        raise ConfigError(f"the configuration does not say {', '.join(missing)}; {advice}")
    try:
        validation = {} if "validation" in given else {"validation": table.make(Validation)}
        found = table.make(Plan, **validation)
    except ConfigError as error:
        raise ConfigError(one_line(error)) from error
    except ValueError as error:
        raise ConfigError(f"the configuration does not fit: {one_line(error)}") from error
    except (TypeError, RuntimeError) as error:
        line = one_line(error)
        raise ConfigError(f"the configuration does not describe a run (give --gin_file gin/run/...): {line}") from error
    factories = {name: table.factory(registry.known_as(head)) for name, head in heads.by_name.items()}
    return dataclasses.replace(found, dataset=_rooted(found.dataset, configuration), heads=factories)


def _rooted(dataset: Any, configuration: Configuration) -> Any:
    """The dataset, told where its images lie."""
    if configuration.root is None:
        return dataset
    parameters = inspect.signature(dataset.wrapped if isinstance(dataset, Deferred) else dataset).parameters
    if "root" not in parameters and all(each.kind != each.VAR_KEYWORD for each in parameters.values()):
        if not configuration.root_given:
            return dataset
        raise ConfigError(f"--data_root: run.dataset is @{dataset.__name__}, which takes no root. Received: "
                          f"{configuration.root}")
    return functools.partial(dataset, root=configuration.root)
