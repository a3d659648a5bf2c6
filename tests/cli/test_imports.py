"""What an import brings along, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "timm", "onnx", "onnxruntime", "torchvision", "safetensors", "matplotlib")


def run(program: str) -> str:
    """Run a program in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("module", "also_without"),
    [
        ("tocom", ("numpy", "typer", "rich")),
        ("tocom.errors", ("numpy", "typer", "rich")),
        ("tocom.formats.bundle", ("numpy", "typer", "rich")),
        ("tocom.compression.tokens", ("numpy",)),
        ("tocom.cli", ("numpy",)),
        ("tocom.export", ("numpy",)),
    ],
)
def test_light_imports_bring_nothing_heavy(module: str, also_without: tuple[str, ...]) -> None:
    loaded = json.loads(run(f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"))
    assert not {*HEAVY, *also_without} & set(loaded)


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(
    "module", ["tocom.runtime", "tocom.calibration", "tocom.images", "tocom.formats.profile", "tocom.cli"]
)
def test_the_device_needs_none_of_the_training(module: str) -> None:
    run(BLOCKED.format(blocked=HEAVY) + f"from {module} import *")


def test_the_package_is_the_command_line_too() -> None:
    run(
        "import runpy, sys; sys.argv = ['tocom', 'nothing']\n"
        "try:\n    runpy.run_module('tocom', run_name='__main__')\nexcept SystemExit as end:\n    assert end.code == 2"
    )


def test_the_runtime_imports_numpy_alone() -> None:
    program = (
        "import sys\nbefore = {*sys.modules}\nfrom tocom.runtime import *\n"  # some packages load a part at every start
        "loaded = {name.partition('.')[0] for name, module in sys.modules.items()"
        " if name not in before and getattr(module, '__spec__', None)}\n"
        "print(*sorted(loaded - sys.stdlib_module_names))"
    )
    others = {name for name in run(program).split() if not name.startswith(("_", "sitecustomize"))}
    assert others == {"numpy", "tocom"}


def test_the_command_line_starts_and_explains_without_any_extra() -> None:
    program = BLOCKED.format(blocked=(*HEAVY, "PIL")) + (
        "sys.argv = ['tocom', 'doctor', '--json']\nfrom tocom.cli import main\nmain()\n"
    )
    findings = json.loads(run(program))
    assert {finding["what"] for finding in findings} >= {"training", "export", "runtime on ONNX Runtime"}


def test_the_public_names() -> None:
    import tocom

    assert sorted(tocom.__all__) == dir(tocom)
    assert all(getattr(tocom, name) is not None for name in tocom.__all__)
    with pytest.raises(AttributeError, match="module 'tocom' has no attribute 'nothing'; it has "):
        tocom.nothing  # noqa: B018


def test_public_names_are_functions_whatever_was_imported_before() -> None:
    """A module of the same name would take the function's place on its first import."""
    told = run(
        "import importlib, os, sys, timm\n"  # once for both: it takes longest
        "first = 'tocom.training.trainer' if os.fork() else 'tocom.export.pipeline'\n"
        "importlib.import_module(first)\n"
        "from tocom import Compensator, compress, load_model, train\n"
        "Compensator(depth=1, channels=8).delta(0, 1)\n"
        "from tocom import compress, load_model, train\n"
        "from tocom.export import export\n"
        "print(first, *map(callable, (compress, load_model, train, export)), flush=True)\n"
        "if 'trainer' in first: assert os.wait()[1] == 0"
    )
    expected = [f"{first} True True True True" for first in ("tocom.export.pipeline", "tocom.training.trainer")]
    assert sorted(told.splitlines()) == expected
