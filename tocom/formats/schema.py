"""The part of JSON Schema that tocom's own schemas use, in plain Python: the runtime reads bundles too."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

from tocom.system.numbers import is_number

__all__ = ["check_schema", "shown"]

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": (list, tuple),
    "string": str,
    "boolean": bool,
    "integer": int,
    "null": type(None),
}
_LIMITS = {
    "minimum": ("at least {}", operator.ge),
    "exclusiveMinimum": ("above {}", operator.gt),
    "maximum": ("at most {}", operator.le),
    "minLength": ("a text of at least {}", operator.ge),
    "minItems": ("a list of at least {}", operator.ge),
    "maxItems": ("a list of at most {}", operator.le),
    "minProperties": ("an object of at least {} members", operator.ge),
    "maxProperties": ("an object of at most {} members", operator.le),
}


def check_schema(
    value: Any, schema: Mapping[str, Any], name: str = "", definitions: Mapping[str, Any] | None = None
) -> None:
    """Check what a JSON parser returned.

    Args:
        value: The value.
        schema: What it must be like.
        name: Where it is in the whole, such as ``batch.min``, for errors; empty at the top.
        definitions: What references in the schema lead to; None takes those of the schema itself.

    Raises:
        ValueError: It is not like that; the first fault is named.
    """
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    schema = definitions[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
    if wanted := _wanted(value, schema):
        raise ValueError(f"{name or 'it'!r} must be {wanted}. Got {shown(value)} instead")
    parts: list[tuple[str, Any, Mapping[str, Any]]] = []
    if isinstance(value, dict):
        if lacking := next((key for key in schema.get("required", ()) if key not in value), None):
            raise ValueError(f"{f'{name}.' if name else ''}{lacking!r} is missing")
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        if others is False and (unknown := next((key for key in value if key not in known), None)):
            raise ValueError(f"{name or 'it'!r} has an unknown member {shown(unknown)}")
        parts = [(f"{name}.{key[:80]}" if name else key, each, known.get(key, others)) for key, each in value.items()]
    elif isinstance(value, (list, tuple)):
        first, others = schema.get("prefixItems", []), schema.get("items", {})
        parts = [
            (f"{name}[{index}]", each, first[index] if index < len(first) else others)
            for index, each in enumerate(value)
        ]
    for part, each, wanted_of in parts:
        if wanted_of:  # what no schema speaks of may be nested deeper than Python calls
            check_schema(each, wanted_of, part, definitions)


def shown(value: Any) -> str:
    """Return a value for a message; a hostile one may be long, and may hold line ends."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _wanted(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Return what a value must be and is not, its members aside; None where it is."""
    types = schema.get("type", ())
    types = [types] if isinstance(types, str) else types
    if types and not any(_is_of(value, each) for each in types):
        return f"of type {' or '.join(types)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if value is None:
        return None
    # Python's $ stands before a last line end too, JSON Schema's does not.
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        return f"like {schema['pattern']}"
    size = value if _is_of(value, "number") else len(value) if isinstance(value, (str, list, tuple, dict)) else 0
    broken = (
        words.format(schema[key])
        for key, (words, holds) in _LIMITS.items()
        if key in schema and not holds(size, schema[key])
    )
    return next(broken, None)


def _is_of(value: Any, kind: str) -> bool:
    if kind == "number":
        # Compared, not converted: JSON knows integers that no float can hold, and NaN compares with nothing.
        return is_number(value) and -1e30 < value < 1e30
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
