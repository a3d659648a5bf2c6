"""The site builds without a warning, holds every page and public name, and quotes only messages that exist."""

from __future__ import annotations

import ast
import fcntl
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tocom

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PUBLIC = ("tocom", "tocom.export", "tocom.runtime", "tocom.calibration", "tocom.errors")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs the extra tocom[docs]")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / ".site-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # every test process builds, and each lays the package out in build/api
        shutil.rmtree(ROOT / "build" / "api", ignore_errors=True)  # as in a fresh clone
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_every_page_is_in_the_menu(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        address = page.relative_to(DOCS).with_suffix("").as_posix()
        assert address == "index" or f'href="{address}/"' in home, f"{page.name} is not in the menu"


def test_every_public_name_is_in_the_reference(site):
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    headings = set(re.findall(r'id="tocom\.[\w.]*?(\w+)"', text))
    missing = [f"{home}.{name}" for home in PUBLIC for name in _names(home) if name not in headings]
    assert not missing, f"add to docs/api.md: {missing}"


def _names(module: str) -> list[str]:
    return [name for name in importlib.import_module(module).__all__ if not name.startswith("__")]


def _modules():
    for found in pkgutil.walk_packages(tocom.__path__, "tocom."):
        try:
            yield importlib.import_module(found.name)
        except ImportError:  # the worker of another TensorRT, say
            continue


def _public_things():
    for module in _modules():
        yield module.__name__, module
        for name in getattr(module, "__all__", []):
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isroutine(thing)):
                continue
            yield f"{module.__name__}.{name}", thing
            for key, member in vars(thing).items() if inspect.isclass(thing) else ():
                shown = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                if not key.startswith("_") and (inspect.isfunction(shown) or isinstance(shown, property)):
                    yield f"{module.__name__}.{name}.{key}", getattr(thing, key, shown)


def test_every_public_name_has_a_docstring():
    things = dict(_public_things())
    assert len(things) > 200
    bare = [name for name, thing in things.items() if not inspect.getdoc(thing)]
    assert not bare, bare


def test_public_functions_of_arrays_give_shapes():
    lacking = []
    for name, thing in _public_things():
        home = "tocom." + name.split(".")[1]
        if not inspect.isfunction(thing) or home in ("tocom.cli", "tocom.quickstart"):
            continue
        kinds = [str(kind) for kind in inspect.get_annotations(thing).values()]
        arrays = [kind for kind in kinds if re.fullmatch(r"Tensor|NDArray\[.*\]|np\.ndarray( \| None)?", kind)]
        if arrays and not re.search(r"\[[\w .…−-]+[,\]]|shape", inspect.getdoc(thing) or ""):
            lacking.append(name)
    assert not lacking, f"no shape in the docstring of {lacking}"


def _texts() -> list[str]:
    """Return every string of the sources; what is filled in at run time is a gap."""
    texts = []
    for folder in ("tocom", "runtime", "export", "calibration"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_every_quoted_message_stands_in_the_source():
    lines = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    left = [line.split("|")[1] for line in lines if line.startswith("| `")]
    messages = [message for cell in left for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 12
    texts = _texts()
    invented = [message for message in messages if not any(message in text for text in texts)]
    assert not invented, f"no message of the sources says {invented}"


def test_changelog_and_version_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d+\.\d+\.\d+)( \(unreleased\))?", changelog, re.MULTILINE)
    assert versions[0][0] == tocom.__version__
    assert importlib.metadata.version("tocom") == tocom.__version__  # installed again since it changed
    numbers = [tuple(map(int, number.split("."))) for number, _ in versions]
    assert numbers == sorted(numbers, reverse=True)
    assert not any(unreleased for _, unreleased in versions[1:])
