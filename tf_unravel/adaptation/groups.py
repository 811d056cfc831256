"""Arguments of a constructor in groups, whose members may also be given one by one.

A class takes some of its settings as one object, `evaluation=Evaluation(steps=10)`, or, through `**kwargs`, one by one
under names of their own, `evaluation_steps=10`, which win. It lists its groups, with their defaults, in `groups`:

    class Learner:
        groups = {"evaluation": Evaluation(steps=5)}

        def __init__(self, backbone, evaluation=None, **options):
            evaluation, = taken(self, options, evaluation=evaluation)
"""

import dataclasses
import inspect
from typing import Any


def member(default: Any, name: str) -> Any:
    """A field of a group that has another name where it is an argument of its own."""
    return dataclasses.field(default=default, metadata={"name": name})


def _names(group: Any) -> dict[str, str]:
    """The name of each member as an argument of its own -> its field."""
    return {field.metadata.get("name", field.name): field.name for field in dataclasses.fields(group)}


def flat(group: Any) -> dict[str, Any]:
    """The members of a group by the names that they have as arguments of their own."""
    return {name: getattr(group, field) for name, field in _names(group).items()}


def taken(owner: Any, options: dict[str, Any], **given: Any) -> list[Any]:
    """The groups of a constructor, in their order.

    Args:
        owner: the instance, whose class has `groups`.
        options: the other keyword arguments; members that were given one by one are taken out.
        **given: what the constructor got for each group, or None.

    Raises:
        ValueError: something else in place of a group.
    """
    found = []
    for parameter, value in given.items():
        default = owner.groups[parameter]
        group = default if value is None else value
        if not isinstance(group, type(default)):
            raise ValueError(f"{type(owner).__name__}.{parameter} must be {type(default).__name__}(...). "
                             f"Received: {value!r}.")
        single = {field: options.pop(name) for name, field in _names(group).items() if name in options}
        found.append(dataclasses.replace(group, **single))
    return found


def arguments(owner: type) -> dict[str, inspect.Parameter]:
    """All arguments of a constructor by name, the members of groups one by one.

    Args:
        owner: a class. Where it has `**kwargs`, the arguments with defaults of its base classes in this package count
            too; names in `older_names` are accepted besides.
    """
    found: dict[str, inspect.Parameter] = {}
    for each in owner.__mro__:
        if "__init__" not in vars(each) or not each.__module__.startswith("tf_unravel"):
            continue
        groups = vars(each).get("groups", {})
        parameters = [*inspect.signature(each.__init__).parameters.values()][1:]  # type: ignore[misc]  # of the class
        for parameter in parameters:
            if parameter.name in groups:
                for name, value in flat(groups[parameter.name]).items():
                    found.setdefault(name, parameter.replace(name=name, default=value, annotation=Any))
            elif parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and (
                each is owner or parameter.default is not parameter.empty
            ):
                found.setdefault(parameter.name, parameter)
        for name in vars(each).get("older_names", ()):
            found[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def refuse_unknown(owner: type, options: dict[str, Any], more: Any = ()) -> None:
    """Raises TypeError, with the names that exist, for an option that is neither an argument nor among `more`."""
    for name, value in options.items():
        if name not in more:
            raise TypeError(f"{owner.__name__} has no argument {name!r}; it has {', '.join(arguments(owner))}. "
                            f"Received: {name}={value!r}.")
