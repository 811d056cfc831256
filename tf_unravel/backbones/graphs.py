"""Graphs traced through a model, kept for as long as they are right.

A tf.function reads the variables of a model anew at every call, and everything else once, when it is traced: which
variables there are, which are trainable, the layers with their settings and dtype policies, the settings of a head.
A `Snapshot` holds all of that, and `GraphCache` drops a graph once it no longer fits, so that a network that was
re-frozen, quantised, given LoRA or other layers is traced again. New values of variables need no new trace.

Models and their parts are held weakly: a cache keeps none alive, and none is mistaken for a later one at the same
address.
"""

import dataclasses
import functools
import hashlib
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

Graph = TypeVar("Graph")

_BY_VALUE = (type(None), bool, int, complex, str, bytes, np.generic, np.dtype, tf.DType, tf.TensorShape)
_BY_IDENTITY = (keras.Layer, keras.Variable, tf.Variable, tf.Tensor, type, types.FunctionType, types.ModuleType)
_LIBRARIES = ("keras", "tensorflow", "numpy")
_DEPTH = 4  # of the objects in an object's attributes that are looked into


class Snapshot:
    """What some models and settings are at this moment, the values of variables left out.

    Args:
        *things: models, layers, numbers, names, dataclasses, containers of them, objects of any kind.

    Example:
        >>> before = Snapshot(model)
        >>> model.layers[1].trainable = False
        >>> before.matches(Snapshot(model))
        False
    """

    def __init__(self, *things: Any):
        self._held: list[Any] = []  # what cannot be held weakly, so that no other object gets its id
        self._references: list[weakref.ref] = []
        self._facts = tuple(self._model(each) if isinstance(each, keras.Layer) else self._fact(each) for each in things)

    def matches(self, other: "Snapshot") -> bool:
        """Whether both are of the same things in the same state; False once a part is gone."""
        return self._facts == other._facts and all(reference() is not None for reference in self._references)

    def _model(self, model: keras.Layer) -> tuple[Any, ...]:
        """A model or layer with all layers inside, their settings and their variables."""
        layers = tuple(
            (self._identity(layer), layer.trainable, layer.autocast,
             layer.dtype_policy.name, layer.dtype_policy.compute_dtype, layer.dtype_policy.variable_dtype,
             tuple((name, self._fact(value)) for name, value in vars(layer).items() if name not in _bookkeeping()))
            for layer in model._flatten_layers()
        )  # fmt: skip
        return layers, tuple((self._identity(variable), variable.trainable) for variable in model.variables)

    def _fact(self, value: Any, depth: int = _DEPTH) -> Any:
        """Something that equals another one where, as far as a trace can tell, the values do."""
        if isinstance(value, _BY_VALUE):
            return type(value), value
        if isinstance(value, float):
            return float, repr(value)  # NaN too equals itself
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return value.shape, value.dtype, hashlib.sha256(value.tobytes()).digest()
        if isinstance(value, _BY_IDENTITY) or depth == 0:
            return self._identity(value)
        if isinstance(value, list | tuple):
            return type(value), tuple(self._fact(each, depth) for each in value)
        if isinstance(value, Mapping):
            return type(value), tuple((self._fact(k, depth), self._fact(v, depth)) for k, v in value.items())
        if isinstance(value, set | frozenset):
            return type(value), frozenset(self._fact(each, depth) for each in value)
        if type(value).__module__.partition(".")[0] in _LIBRARIES or not hasattr(value, "__dict__"):
            return self._identity(value)
        inside = tuple((name, self._fact(each, depth - 1)) for name, each in vars(value).items())
        return type(value) if dataclasses.is_dataclass(value) else self._identity(value), inside

    def _identity(self, value: Any) -> int:
        try:
            self._references.append(weakref.ref(value))
        except TypeError:
            self._held.append(value)
        return id(value)


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Attributes in which Keras notes what was compiled, built or called."""
    return frozenset({*vars(keras.layers.Layer()), *vars(keras.Model()), "_obj_reference_counts_dict"})


class GraphCache:
    """Graphs through models: one a model and key, as long as the model lives and both are what they were.

    A copy or a pickle of a cache is empty: what a graph was traced with belongs to the original.

    Example:
        >>> cache = GraphCache()
        >>> forward = cache.get(model, "forward", lambda: tf.function(lambda images: ...))
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Snapshot, Any]]] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        """The number of models."""
        return len(self._kept)

    def get(self, model: keras.Model, key: Any, make: Callable[[], Graph], *settings: Any) -> Graph:
        """Returns the graph that is kept, or a new one.

        Args:
            model: what the graph is traced through.
            key: which graph of this model; hashable.
            make: gives the graph. It must not refer to the model but weakly, or the model is never freed.
            *settings: what else the trace depends on.
        """
        graphs = self._kept.setdefault(model, {})
        now = Snapshot(model, *settings)
        if key not in graphs or not graphs[key][0].matches(now):
            graphs[key] = now, make()
        return graphs[key][1]

    def __reduce__(self) -> tuple[type["GraphCache"], tuple[()]]:
        return GraphCache, ()
