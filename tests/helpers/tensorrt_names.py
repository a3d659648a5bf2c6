"""Writes ``tensorrt_names.json``: classes of TensorRT's Python module with their members and arguments, from its stubs.

    make typecheck   # puts the stubs, whose five mistakes it mends, into build/tensorrt-stubs
    python tests/helpers/tensorrt_names.py build/tensorrt-stubs

The scripted TensorRT of the tests is held to the list by :func:`differences`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["classes", "differences"]

# What the scripted modules stand for; more are read when they are named here.
CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorIOMode",
)
LIST = Path(__file__).with_suffix(".json")


def members(body: list[ast.stmt]) -> dict[str, Any]:
    """Return attribute → None, and method → one list of arguments per overload."""
    found: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
        elif isinstance(node, ast.ClassDef):
            found[node.name] = None
        elif isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
            if any("property" in ast.unparse(mark) or ".setter" in ast.unparse(mark) for mark in node.decorator_list):
                found[node.name] = None
            else:
                found.setdefault(node.name, []).append([argument.arg for argument in node.args.args])
    return found


@cache
def classes() -> dict[str, dict[str, Any]]:
    """Return the members of each class, as :func:`members` finds them."""
    found: dict[str, dict[str, Any]] = json.loads(LIST.read_text())["classes"]
    return found


def differences(scripted: type, name: str, *, made: bool = False) -> list[str]:
    """Return what a scripted class has that TensorRT's class of this name has not, or takes in another way.

    Args:
        scripted: The class.
        name: TensorRT's name of it.
        made: It is called to make an object, so its arguments count too.
    """
    real = classes()[name]
    found = []
    for member, value in vars(scripted).items():
        if member.startswith("_") and not (made and member == "__init__"):
            continue
        if member not in real:
            found.append(f"{name} has no {member}")
        elif inspect.isfunction(value) and real[member] is not None:
            arguments = list(inspect.signature(value).parameters)
            if arguments not in real[member]:
                found.append(f"{name}.{member} takes {real[member]}, not {arguments}")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    version = next(folder.glob("tensorrt_stubs-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    tree = ast.parse((folder / "tensorrt_bindings/tensorrt.pyi").read_text())
    classes = {
        node.name: members(node.body)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in CLASSES
    }
    content = {"origin": f"https://pypi.org/project/tensorrt-stubs, {version}", "classes": classes}
    text = json.dumps(content, indent=1, sort_keys=True)
    # A member a line.
    LIST.write_text(re.sub(r"\[\s+\[[^{}]*?\]\s+\]", lambda found: " ".join(found[0].split()), text) + "\n")
