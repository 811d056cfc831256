"""TensorFlow Serving's REST protocol: a request's JSON as the arrays of a signature, and arrays as a response's JSON.

Both of its formats are read. By columns, each input named, as every signature takes it:

    {"signature_name": "classify", "inputs": {"support_images": [...], "support_labels": [...], "query_images": [...]}}
    -> {"outputs": ...}, the value itself where there is one output, else one value a name

By rows, for signatures of one input whose outputs have a row for each of its rows:

    {"signature_name": "features", "instances": [image, image]}  ->  {"predictions": [row, row]}

A string, such as an image file, is its bytes in base64: {"image_bytes": [{"b64": "..."}]} by columns, and
{"instances": [{"b64": "..."}]} or {"instances": [{"image_bytes": {"b64": "..."}}]} by rows.

Nothing is guessed: a number that is no integer of the input's type, a list that is not rectangular, NaN, an unknown
name, a missing one and what is not base64 are refused, each by a line that says what was received.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorflow as tf

from tf_unravel.deployment.exporting.decoding_graph import ENCODED

DEFAULT_SIGNATURE = "serving_default"
_BASE64 = "b64"


class BadRequest(ValueError):
    """A request that cannot be answered; the message is one line for the client."""


class Call(NamedTuple):
    """A request, understood.

    Attributes:
        signature: its name.
        inputs: name -> array.
        by_rows: whether the response is by rows.
    """

    signature: str
    inputs: dict[str, np.ndarray]
    by_rows: bool


def understood(body: bytes, signatures: Mapping[str, Any]) -> Call:
    """A request's body as arrays.

    Args:
        body: JSON.
        signatures: name -> concrete function of the model.

    Raises:
        BadRequest: it does not fit.
    """
    request = parsed(body)
    if not isinstance(request, dict) or len({"inputs", "instances"} & set(request)) != 1:
        raise BadRequest('the body must be a JSON object with either "inputs" or "instances". '
                         f"Received: {_kind(request)}")
    name = request.get("signature_name", DEFAULT_SIGNATURE)
    if not isinstance(name, str) or name not in signatures:
        raise BadRequest(f"signature_name is one of {', '.join(sorted(signatures))}. Received: {_kind(name)}")
    wanted = signatures[name].structured_input_signature[1]
    if "instances" in request:
        return Call(name, _columns(request["instances"], wanted), True)
    values = request["inputs"]
    if not isinstance(values, dict) and len(wanted) == 1:  # one input may go without its name
        values = {next(iter(wanted)): values}
    if not isinstance(values, dict) or set(values) != set(wanted):
        raise BadRequest(f"the inputs of {name} are {', '.join(sorted(wanted))}. Received: {_kind(values)}")
    return Call(name, {key: _array(key, values[key], spec) for key, spec in wanted.items()}, False)


def images_of(call: Call) -> int:
    """How many images a call has, support and query together."""
    return sum(len(call.inputs[name]) for name in (*ENCODED, *ENCODED.values()) if name in call.inputs)


def response_of(call: Call, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by name as the JSON object that answers a call."""
    plain = {name: _listed(value) for name, value in outputs.items()}
    alone = next(iter(plain.values())) if len(plain) == 1 else None
    if not call.by_rows:
        return {"outputs": plain if alone is None else alone}
    rows = alone or [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return {"predictions": rows}


def parsed(body: bytes) -> Any:
    """A request's body as JSON values.

    Raises:
        BadRequest: it is no JSON, or has numbers that are not finite.
    """
    def refuse(constant: str) -> NoReturn:
        raise BadRequest(f"numbers must be finite. Received: {constant}")

    try:
        return json.loads(body, parse_constant=refuse)
    except BadRequest:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({error}); files are sent in base64, inside JSON. "
                         f"Received: {len(body)} bytes") from error


def _columns(instances: Any, wanted: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    """Rows, each a value or an object of one, as the one column that they are of."""
    if len(wanted) != 1:
        raise BadRequest('"instances" are for signatures of one input; give "inputs", each by its name. '
                         f"Received: instances, of {', '.join(sorted(wanted))}")
    ((name, spec),) = wanted.items()
    if not isinstance(instances, list) or not instances:
        raise BadRequest(f'"instances" must be a list of at least one. Received: {_kind(instances)}')
    if isinstance(instances[0], dict) and set(instances[0]) != {_BASE64}:
        if not all(isinstance(row, dict) and set(row) == {name} for row in instances):
            raise BadRequest(f"every instance must have {name} and nothing else. Received: {_kind(instances[0])}")
        instances = [row[name] for row in instances]
    return {name: _array(name, instances, spec)}


def _array(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """A nested list as an array of an input's type and rank."""
    if spec.dtype == tf.string:
        return strings(name, value)
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{name} must be a rectangular array, every row as long. Received: {error}") from error
    shape = ", ".join("any" if size is None else str(size) for size in spec.shape)
    fits = array.ndim == spec.shape.rank and spec.shape.is_compatible_with(array.shape)
    if not fits or 0 in array.shape:
        raise BadRequest(f"{name} must have the shape [{shape}], none of it 0. Received: shape {list(array.shape)}")
    dtype = spec.dtype.as_numpy_dtype
    limits = np.iinfo(dtype)
    if array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
        found = f"{array.min()} to {array.max()}" if array.dtype.kind in "iuf" else f"values of type {array.dtype.name}"
        raise BadRequest(f"{name} must be whole numbers {limits.min} to {limits.max}. Received: {found}")
    return array.astype(dtype)


def strings(name: str, value: Any) -> np.ndarray:
    """A list of strings in base64, {"b64": "..."} each, as an array of bytes, [N] of type object.

    Raises:
        BadRequest: it is none.
    """
    if not isinstance(value, list) or not value:
        raise BadRequest(f'{name} must be a list of at least one {{"{_BASE64}": "..."}}. Received: {_kind(value)}')
    return np.array([_bytes(name, row, each) for row, each in enumerate(value)], object)


def _bytes(name: str, row: int, value: Any) -> bytes:
    if not isinstance(value, dict) or set(value) != {_BASE64} or not isinstance(value[_BASE64], str):
        raise BadRequest(f'{name} must be strings in base64, {{"{_BASE64}": "..."}}. '
                         f"Received: {_kind(value)} at {row}")
    text = "".join(value[_BASE64].split())  # TensorFlow Serving ignores white space, and needs no padding
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{name} must be base64. Received: {len(text)} characters at {row} ({error})") from error


def _listed(value: np.ndarray) -> Any:
    """An array as nested lists; strings as text."""
    return np.char.decode(value.astype(bytes), "utf-8").tolist() if value.dtype.kind in "OS" else value.tolist()


def _kind(value: Any) -> str:
    """What a value is, in a few words, however large it is."""
    if isinstance(value, dict):
        names = [name if name.isprintable() and len(name) <= 40 else repr(name[:40]) for name in sorted(value)[:5]]
        return f"an object with {', '.join(names) or 'nothing'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return repr(value)[:60]
