"""The wheel holds what it should and nothing else, and so works without the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("tocom", "export", "runtime", "calibration")
FILES = ("pyproject.toml", "LICENSE", "README.md")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this working tree, built without a network from a copy: building leaves folders behind."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if int(found.split(".")[0]) < 77:
        pytest.skip(f"builds without a network need setuptools 77 or newer here; found {found}")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(out), "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as content:
        return set(content.namelist())


def test_every_module_of_the_four_parts_is_in_the_wheel(names: set[str]) -> None:
    wanted = set()
    for part in PARTS:
        inside = "tocom" if part == "tocom" else f"tocom/{part}"
        for path in (ROOT / part).rglob("*.py"):
            if "plugins" not in path.relative_to(ROOT / part).parts:
                wanted.add(f"{inside}/{path.relative_to(ROOT / part).as_posix()}")
    assert wanted - names == set()


def test_data_stands_beside_the_modules(names: set[str]) -> None:
    assert "tocom/py.typed" in names
    assert "tocom/calibration/report/report.html.j2" in names
    assert {path.name for path in (ROOT / "tocom" / "formats" / "schemas").glob("*.json")} == {
        name.rsplit("/", 1)[1] for name in names if name.startswith("tocom/formats/schemas/") and name.endswith(".json")
    }


def test_nothing_else_is_in_the_wheel(names: set[str]) -> None:
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"tocom"}
    assert not [name for name in names if "test" in name.rsplit("/", 1)[-1] or "__pycache__" in name]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Unpacked, on its own path: the command line starts, and every module of the light parts imports."""
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import tocom, tocom.runtime, tocom.calibration, tocom.export, tocom.formats.schemas\n"
        "for module in (tocom, tocom.runtime, tocom.calibration, tocom.export):\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
        "from pathlib import Path\n"
        "assert Path(tocom.formats.schemas.__file__).with_name('bundle-v1.schema.json').is_file()\n"
        "sys.argv = ['tocom', '--version']\n"
        "from tocom.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tocom ")
