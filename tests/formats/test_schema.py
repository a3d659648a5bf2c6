"""Our part of JSON Schema against the jsonschema library."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocom.formats.schema import check_schema

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["count"],
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 3,
    "properties": {
        "count": {"type": "integer", "minimum": 1, "maximum": 4},
        "share": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "name": {"$ref": "#/$defs/name"},
        "shape": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "prefixItems": [{"enum": ["a", 2]}],
            "items": {"type": "boolean"},
        },
    },
    "$defs": {"name": {"type": "string", "minLength": 2, "pattern": "^[a-c]+$"}},
}
LEAVES = st.none() | st.booleans() | st.integers(-1, 6) | st.floats(-1, 6) | st.text("abcd", max_size=4)
VALUES = st.dictionaries(
    st.sampled_from(["count", "share", "name", "shape", "other"]), LEAVES | st.lists(LEAVES, max_size=4), max_size=4
)


@given(VALUES | LEAVES)
def test_it_agrees_with_the_library(value: Any) -> None:
    try:
        check_schema(value, SCHEMA)
    except ValueError:
        is_taken = False
    else:
        is_taken = True
    # JSON Schema takes 1.0 for an integer; a count that is no int would surprise whoever uses it.
    counts = isinstance(value, dict) and isinstance(value.get("count"), float)
    assert is_taken == (jsonschema.Draft202012Validator(SCHEMA).is_valid(value) and not counts)


def test_the_first_fault_is_named() -> None:
    with pytest.raises(ValueError, match=r"^'shape\[1\]' must be of type boolean\. Got 7 instead$"):
        check_schema({"count": 1, "shape": [2, 7]}, SCHEMA)


def test_a_pattern_ends_where_the_text_ends() -> None:
    with pytest.raises(ValueError, match=r"'name' must be like"):
        check_schema({"count": 1, "name": "abc\n"}, SCHEMA)


def test_what_no_schema_speaks_of_may_be_nested_deeper_than_python_calls() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    check_schema({"more": nested}, {"type": "object"})
