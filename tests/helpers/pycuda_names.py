"""Writes ``pycuda_names.json``: the names that pycuda's module ``_driver`` has, read from pycuda's own source.

In a clone of https://github.com/inducer/pycuda:
    git show v2026.1:src/wrapper/wrap_cudadrv.cpp | python tests/helpers/pycuda_names.py v2026.1
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_TOKEN = re.compile(
    r'py::class_<(?:[^()]|\(\))*?>\s*(?:wrp|cls)?\s*\(\s*"(?P<cls>\w+)"(?P<init>[^;]*?)(?=\s*\n\s*\.|;|\)\s*\n)'
    r"|DECLARE_EXC\((?P<exc>\w+),"
    r'|py::enum_<\w+>\("(?P<enum>\w+)"\)'
    r'|py::def\("(?P<function>\w+)"(?P<arguments>[^;]*);'
    r"|\bDEF_SIMPLE_FUNCTION\((?P<simple>\w+)\)"
    r'|\.(?:def|add_property)\("(?P<method>\w+)"|\.DEF_SIMPLE_METHOD\((?P<plain>\w+)\)'
)


def names_in(source: str) -> dict[str, Any]:
    """Return functions with their arguments (None where the source names none), classes with members, and more."""
    found: dict[str, Any] = {"functions": {}, "classes": {}, "exceptions": [], "enums": []}
    members: list[str] = []
    for match in _TOKEN.finditer(source[source.index("BOOST_PYTHON_MODULE(_driver)") :]):
        if name := match["cls"]:
            members = found["classes"].setdefault(name, [])
        elif name := match["exc"]:
            found["exceptions"].append(name)
        elif name := match["enum"]:
            found["enums"].append(name)
        elif name := match["function"] or match["simple"]:
            lists = re.findall(r"py::args?\(([^)]*)\)", match["arguments"] or "")
            found["functions"][name] = re.findall(r'"(\w+)"', " ".join(lists)) or None
        elif name := match["method"] or match["plain"]:
            members.append(name)
    found["exceptions"] = [name for name in found["exceptions"] if name != "NAME"]
    found["classes"] = {name: sorted(set(held)) for name, held in found["classes"].items()}
    return found


if __name__ == "__main__":
    origin = f"https://github.com/inducer/pycuda, {sys.argv[1]}, src/wrapper/wrap_cudadrv.cpp"
    content = {"origin": origin, **names_in(sys.stdin.read())}
    text = json.dumps(content, indent=1, sort_keys=True)
    one_line_lists = re.sub(r"\[[^\]]*\]", lambda found: " ".join(found[0].split()), text)
    Path(__file__).with_suffix(".json").write_text(one_line_lists + "\n")
