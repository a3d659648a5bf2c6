"""Plain JSON content as dataclasses: every member is there, known, and of the type that the dataclass says."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tocom.formats.schema import shown

__all__ = ["as_dataclass"]

T = TypeVar("T")


def as_dataclass(kind: type[T], content: Any, where: str = "it") -> T:
    """Return the dataclass that JSON content describes; its own checks run as well.

    Args:
        kind: A dataclass of str, int, float, bool, None, tuples, mappings and dataclasses.
        content: What a JSON parser returned.
        where: Name of the content, for errors.

    Raises:
        ValueError: A member is missing, unknown, or of another type; it is named.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be an object, not {shown(content)}")
    types_of = get_type_hints(kind)
    members = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(content.keys() - set(members)):
        raise ValueError(f"{where} has an unknown member {unknown[0][:80]!r}")
    if missing := next((name for name in members if name not in content), None):
        raise ValueError(f"{where} has no {missing!r}")
    return kind(**{name: _read(types_of[name], value, f"{name!r}") for name, value in content.items()})


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return value if type(value) is kind else as_dataclass(kind, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):  # of a type and None
        some = next(part for part in parts if part is not types.NoneType)
        return None if value is None else _read(some, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(each) == len(value):
            return tuple(_read(part, entry, where) for part, entry in zip(each, value, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        return {parts[0](name): _read(parts[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if kind is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if type(value) is kind and (kind is not float or math.isfinite(value)):
        return value
    raise ValueError(f"{where} must be {getattr(kind, '__name__', kind)}, not {shown(value)}")
