"""The contract of each op (its README) against the code and the torch ops."""

from __future__ import annotations

import inspect
import re

import pytest
from kernel_cases import SOURCES

from tocom.compression.merging import token_merge
from tocom.compression.pruning import token_prune

OPS = {"TokenMerge": ("token_merge", token_merge), "TokenPrune": ("token_prune", token_prune)}


def table(text: str, heading: str) -> list[list[str]]:
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture(params=OPS, name="op")
def op_fixture(request):
    folder, function = OPS[request.param]
    root = SOURCES / folder
    return {
        "name": request.param,
        "readme": (root / "README.md").read_text(),
        "header": (root / f"{folder}_plugin.h").read_text(),
        "source": (root / f"{folder}_plugin.cpp").read_text(),
        "function": function,
    }


def test_identity(op):
    assert op["readme"].startswith(f"# {op['name']}\n")
    assert f'kName = kMapped ? "{op["name"]}Mapped" : "{op["name"]}"' in op["header"]
    shared = (SOURCES / "common" / "op_plugin.h").read_text()
    assert 'kNamespace = "tocom"' in shared
    assert 'kVersion = "1"' in shared
    assert "Domain and namespace `tocom`, version `1`" in op["readme"]


def test_tensors(op):
    rows = table(op["readme"], "Tensors")
    inputs = [row for row in rows if row[1] == "input"]
    outputs = [row for row in rows if row[1] == "output"]
    assert f"kInputs = {len(inputs)};" in op["header"]
    assert f"kOutputs = kMapped ? {len(outputs)} : {len(outputs) - 1};" in op["header"]
    assert rows == inputs + outputs
    assert rows[-1][0] == "destination"
    # Bit i of kTokenTensors says that tensor i has the tokens' type, of kIntegerTensors int32; the others are float32.
    bits = int(re.search(r"kTokenTensors = 0b([01]+);", op["header"])[1], 2)
    integers = int(re.search(r"kIntegerTensors = kMapped \? 0b([01]+) : 0;", op["header"])[1], 2)
    types = ["tokens" if bits >> i & 1 else "int32" if integers >> i & 1 else "float32" for i in range(len(rows))]
    assert [row[3] for row in rows] == types
    names = list(inspect.signature(op["function"]).parameters)
    assert [row[0] for row in inputs] == names[: len(inputs)]


def test_ranks_and_token_counts(op):
    for name, _, shape, _, _ in table(op["readme"], "Tensors"):
        rank = len(shape.strip("[]").split(","))
        if name in ("keys", "size", "score"):
            index = {"keys": 1, "size": 2, "score": 1}[name]
            assert f'require_rank("{name}", inputs[{index}], {rank})' in op["source"]
        if name == "x":
            assert rank == 3
            assert 'require_tokens("x"' in op["source"]
    assert "kMaxTokens = 4096" in (SOURCES / "common" / "portable.h").read_text()
    assert "at most 4096" in op["readme"]


def test_attributes(op):
    rows = table(op["readme"], "Attributes")
    names = re.search(r"kFields\[\] = \{(.*)\};", op["header"])[1]
    assert [row[0] for row in rows] == re.findall(r'"(\w+)"', names)
    parameters = list(inspect.signature(op["function"]).parameters)
    assert [row[0] for row in rows] == parameters[-len(rows) :]
    for name, kind, least, most, _ in rows:
        assert kind == "int32"
        assert f'require_at_least("{name}", {name}(), {least})' in op["source"]
        if most.isdigit():
            assert f'require_at_most("{name}", {name}(), {most})' in op["source"]
    limit = (SOURCES / "common" / "token_layout.h").read_text()
    assert "tokens > prefix ? (tokens - prefix) / 2 : 0" in limit
    assert dict((row[0], row[3]) for row in rows)["r"] == "(tokens - prefix) / 2"
