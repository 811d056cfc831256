"""gin's global state as a value: one table of bindings per configuration, in force only while something reads it.

gin keeps one table per process, and whatever it configures reads that table when it is called. `GinTable` gives every
configuration a table of its own, which replaces gin's for the length of a call and is then taken out again: two
configurations never see each other's bindings, nor those that the user's program gave to gin.

Why the table comes back for a call, and not everything is a `functools.partial` from the start: a class decorated with
`@gin.configurable` reads the table in its constructor, and a configurable may call others by their Python names. Both
are out of sight until they are called, and the tutorial on one's own head does the first. What a gin file names without
brackets (`run.backbone = @conv4`) is a partial: a `Deferred`, which brings its table along wherever it is called.
"""

import contextlib
import copy
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gin

from tf_unravel.runs.gin_files import open_text

_ONE_AT_A_TIME = threading.RLock()


class GinTable:
    """One configuration's share of gin's global state: bindings, imports, singletons, and what was used of them."""

    def __init__(self) -> None:
        # These names of gin.config are private; gin reads them anew at every use, so that they can be exchanged.
        self._state: dict[str, Any] = {
            "_CONFIG": {}, "_OPERATIVE_CONFIG": {}, "_SINGLETONS": {}, "_IMPORTS": set(), "_CONFIG_IS_LOCKED": False,
            "_FILE_READERS": [
                (open_text, os.path.isfile), *((read, _sure(there)) for read, there in gin.config._FILE_READERS)
            ],
        }  # fmt: skip

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside, gin knows this table alone; in one thread at a time."""
        with _ONE_AT_A_TIME, contextlib.ExitStack() as scope:
            outside = {name: getattr(gin.config, name) for name in self._state}
            if outside["_CONFIG"] is not self._state["_CONFIG"]:
                scope.enter_context(gin.config_scope(None))  # those that are open belong to the other table
            _exchange(self._state)
            try:
                yield
            finally:
                self._state = {name: getattr(gin.config, name) for name in self._state}
                _exchange(outside)

    def __deepcopy__(self, memo: Any) -> "GinTable":  # gin's references would be resolved by it
        return self

    def make(self, configurable: Callable[..., Any], **arguments: Any) -> Any:
        """Calls what gin knows with the arguments bound here; those that are given win."""
        with self.in_force():
            return gin.get_configurable(configurable)(**arguments)

    def factory(self, configurable: Callable[..., Any]) -> Callable[[], Any]:
        """What makes one with the arguments bound here, or as it is where gin does not know it."""
        try:
            gin.get_configurable(configurable)
        except ValueError:
            return configurable
        return functools.partial(self.make, configurable)

    def bound(self, name: str) -> list[str]:
        """The parameters of a configurable that are bound."""
        with self.in_force():
            return list(gin.get_bindings(name, resolve_references=False))

    def value(self, name: str, parameter: str, scopes: list[str] | None = None) -> Any:
        """What a parameter is bound to, references resolved; None where it is not bound."""
        with self.in_force(), gin.config_scope(scopes):
            return copy.deepcopy(gin.get_bindings(name, resolve_references=False).get(parameter))

    def remove(self, selector: str, parameter: str) -> None:
        """Removes a parameter of a configurable, by its full name, in every scope, and macros that only it used."""
        table, removed = self._state["_CONFIG"], []
        for key in [key for key, bound in table.items() if key[1] == selector and parameter in bound]:
            removed.append(table[key].pop(parameter))
            if not table[key]:
                del table[key]
        while removed:
            macros = {each.config_key for each in gin.config.iterate_references(removed)}
            used = {each.config_key for each in gin.config.iterate_references(table)}
            removed = [table.pop(key) for key in macros - used if key[1] == "gin.macro" and key in table]

    def forget_use(self) -> None:
        """Looking at a value counts as a use: what was used while the table was filled is no part of a run."""
        self._state["_OPERATIVE_CONFIG"].clear()

    def defer(self) -> None:
        """Ties what is called later, by whoever was given it, to this table."""
        for reference in gin.config.iterate_references(self._state["_CONFIG"]):
            if not reference.evaluate and not isinstance(reference.scoped_configurable_fn, Deferred):
                reference._scoped_configurable_fn = Deferred(self, reference)


class Deferred:
    """A configurable that is called later, with the arguments bound in its table.

    Args:
        table: its table.
        reference: gin's reference, such as `@conv4` or `@wide/conv4`.
    """

    def __init__(self, table: GinTable, reference: Any):
        self._table, self._function = table, reference.scoped_configurable_fn
        self.scopes: list[str] = reference.scopes
        self.wrapped: Callable[..., Any] = reference.configurable.wrapped
        self.__name__: str = reference.configurable.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._table.in_force():
            return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> "Deferred":  # gin copies what it passes on
        return self


def _sure(is_there: Callable[[str], bool]) -> Callable[[str], bool]:
    """The same check, which crashes on an include "data/..." where the user's program has a folder data/ beside it."""

    def is_file(path: str) -> bool:
        with contextlib.suppress(TypeError):
            return is_there(path)
        return False

    return is_file


def _exchange(state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(gin.config, name, value)
