"""Values that nodes return, as JSON.

Numbers that are not finite and missing times are null, a Decimal is a number with all its digits,
bytes are base64, a set is a sorted array, a duration is its seconds, and keys are text as in
Python's `json`.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Collection, Mapping, Set
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import orjson

_INT64, _UINT64 = -(1 << 63), 1 << 64
_SECOND = np.timedelta64(1, "s")


def json_bytes(value: Any) -> bytes:
    """A value as JSON.

    Raises:
        TypeError: JSON has no form of a value, such as a complex number.
    """
    try:
        return orjson.dumps(value, _plain)
    except TypeError:  # also for keys that are not text, and integers of more than 64 bits
        return orjson.dumps(_plain_within(value), _plain)


def host_array(tensor: Any) -> np.ndarray:
    """A tensor of torch as an array; bfloat16, which NumPy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def time_texts(times: np.ndarray) -> np.ndarray:
    """Times as an object array of ISO 8601 text; None where missing."""
    texts = np.array(np.datetime_as_string(times), object)
    for place, text in np.ndenumerate(texts):
        short = text.rstrip("0").rstrip(".") if "." in text else text
        texts[place] = None if text == "NaT" else short
    return texts


def _plain(value: Any) -> Any:
    """A value of a type that orjson lacks, as one that it has or that is simpler."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain_array(value)
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value)) if value.is_finite() else None
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, timedelta | date) and value != value:  # NaT of pandas
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, date):  # of a subclass, such as pandas' Timestamp
        return value.isoformat()
    if isinstance(value, float):
        return float(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if hasattr(value, "detach"):
        return host_array(value)
    for method in ("model_dump", "tolist", "to_list", "to_pylist", "as_py"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Collection):
        return list(value)
    if type(value).__name__ == "NAType":  # of pandas
        return None
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _plain_array(value: Any) -> Any:
    kind = value.dtype.kind
    if kind == "M":
        return time_texts(np.asarray(value)).tolist()
    if kind == "m":
        return np.asarray(value / _SECOND).tolist()
    if kind in "biuf":
        if value.dtype.itemsize > 8:
            return np.asarray(value).astype(np.float64)
        try:
            return orjson.Fragment(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
        except TypeError:  # such as an array in Fortran order
            return value.tolist()
    if kind == "V" and value.dtype.names:
        is_record = isinstance(value, np.void)
        return {name: value[name] for name in value.dtype.names} if is_record else list(value)
    return value.tolist()


def _plain_within(value: Any) -> Any:
    """A value whose keys and integers, also within, are of types that orjson has."""
    if isinstance(value, Mapping):
        texts = {_key(key): _plain_within(item) for key, item in value.items()}
        if len(texts) < len(value):
            raise TypeError(f"keys of a dict are equal as text: {list(value)[:10]}")
        return texts
    if isinstance(value, Enum):
        return _plain_within(value.value)
    if isinstance(value, int):
        return value if _INT64 <= value < _UINT64 else orjson.Fragment(str(int(value)))
    if isinstance(value, list | tuple):
        return [_plain_within(item) for item in value]
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _plain_within(getattr(value, field.name)) for field in fields}
    if value is None or isinstance(value, str | float | orjson.Fragment):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufMm":
        return value
    try:
        plain = _plain(value)
    except TypeError:
        return value  # orjson has it, or says that it lacks it
    return _plain_within(plain)


def _key(key: Any) -> str:
    text = json_bytes(key)
    if text[:1] in (b"[", b"{"):
        raise TypeError(f"a {type(key).__name__} cannot be a key in JSON: {key!r}")
    return orjson.loads(text) if text.startswith(b'"') else text.decode()
