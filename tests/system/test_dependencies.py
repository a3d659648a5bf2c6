"""A package that is missing, too old, or broken: one line that names it, and never a name that "cannot be imported"."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tocom.errors import DependencyError
from tocom.system.dependencies import Requirement, explain, installed, lazy_names, requirements

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package, as pip leaves it, before all others: its metadata, and its module where there is one."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, version: str, source: str | None = None, requires: tuple[str, ...] = ()) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        if source is not None:
            (tmp_path / f"{name.replace('-', '_')}.py").write_text(textwrap.dedent(source))

    put("tocom", "0.1.0", None, ("numpy>=1.23", 'gears>=2.3; extra == "export"', 'oil>=1; extra == "train"'))
    return put


def failure(install: Install, home: str) -> BaseException:
    """Ask a lazy root for the name whose module is ``home``."""
    install("home", "1", home)
    try:
        with pytest.raises(ImportError) as raised:
            lazy_names("tocom.part", {"home": ["answer"]})[0]("answer")
    finally:
        for name in ("home", "gears", "oil"):
            sys.modules.pop(name, None)
    return raised.value


def test_a_missing_package_is_named_with_what_brings_it(install: Install) -> None:
    error = failure(install, "import gears\nanswer = 1")
    assert isinstance(error, DependencyError)
    assert str(error) == (
        "The package gears is not installed; gears>=2.3 is needed. Install it: pip install 'tocom[export]'"
    )


@pytest.mark.parametrize(
    "source",
    ["", "def spin(): ...", "raise AttributeError('no teeth')", "class Gear:\n    def __init__(self): self.teeth()"],
    ids=["name missing", "another name", "fails at import", "fails in use"],
)
def test_a_package_that_is_too_old_explains_every_error_in_it(install: Install, source: str) -> None:
    install("gears", "2.2.9", source)
    error = failure(install, "from gears import Gear\nanswer = Gear()")
    assert isinstance(error, DependencyError)
    assert str(error).startswith(
        "The package gears is too old: 2.2.9 is installed, gears>=2.3 is needed. "
        "Upgrade it: pip install --upgrade 'gears>=2.3' ("
    )


def test_a_package_that_is_broken_at_import_is_named_with_its_error(install: Install) -> None:
    """An AttributeError inside a lazy name would read as "cannot import name"."""
    install("oil", "1.4", "import sys\nsys.no_such_pump")
    install("gears", "2.10", "import oil")
    error = failure(install, "import gears\nanswer = 1")
    assert isinstance(error, DependencyError)
    assert str(error) == (
        "The package oil 1.4 is broken: AttributeError: module 'sys' has no attribute 'no_such_pump'. oil>=1 is "
        "needed. Install it and what it needs again: pip install --upgrade 'oil>=1'"
    )


def test_an_error_of_our_own_keeps_its_cause(install: Install) -> None:
    error = failure(install, "import sys\nanswer = sys.no_such_thing")
    assert not isinstance(error, DependencyError)
    assert str(error) == "AttributeError: module 'sys' has no attribute 'no_such_thing'"
    assert isinstance(error.__cause__, AttributeError)


def test_an_error_in_a_package_that_fits_is_not_the_packages(install: Install) -> None:
    install("gears", "2.3", "def turn(): raise ValueError('backwards')")
    install("home", "1", "import gears")
    import home  # type: ignore[import-not-found]

    with pytest.raises(ValueError, match="backwards") as raised:
        home.gears.turn()
    for name in ("home", "gears"):
        sys.modules.pop(name)
    assert explain(raised.value) is None


@pytest.mark.parametrize(
    ("line", "version", "met"),
    [
        ("gears>=2.3", "2.3", True),
        ("gears>=2.3", "2.3.0+cpu", True),
        ("gears>=2.3", "2.10.1", True),
        ("gears>=2.3", "2.3rc1", True),
        ("gears>=2.3", "2.2.99", False),
        ("gears<3,>=2.3", "2.2", False),
        ("gears==1.7.1.116; python_version < '3.13' and extra == 'rtx'", "1.7.1.115", False),
        ("gears", "0.1", True),
    ],
)
def test_versions_compare_by_their_numbers(line: str, version: str, met: bool) -> None:
    assert Requirement(line).met_by(version) is met


def test_what_is_declared_here_is_what_is_installed_here() -> None:
    """Every line of the real metadata is read, and this environment meets what of it is installed."""
    declared = {(each.package, each.extra): each.version for each in requirements()}
    assert declared["torch", "train"].startswith(">=")
    assert declared["numpy", ""].startswith(">=")
    assert all(package != "tocom" for package, _ in declared)
    for each in requirements():
        if each.extra in ("bench", "docs", "dev"):  # tools, which a machine may have of its own
            continue
        version = installed(each.package)
        assert version is None or each.met_by(version), (each.package, version)


COMMAND = "import sys; sys.argv = ['tocom', *sys.argv[1:]]; from tocom.cli import main; main()"


@pytest.mark.parametrize(
    ("package", "version", "source", "arguments", "line"),
    [
        # typer 0.12.0 raises this for the options of every command (typer/main.py, get_click_type).
        (
            "typer", "0.12.0", "raise RuntimeError('Type not yet supported: int | None')", ["--help"],
            "The package typer is too old: 0.12.0 is installed, typer>=",
        ),
        # timm 1.0.15 has a timm.layers without Attention.
        (
            "timm", "1.0.15", "", ["export", "--model", "x", "--degrees", "0", "--out", "out"],
            "The package timm is too old: 1.0.15 is installed, timm>=",
        ),
        (
            "onnx", "99.0", "import sys\nsys.no_such_pump",
            ["export", "--model", "x", "--degrees", "0", "--out", "out"],
            "The package onnx 99.0 is broken: AttributeError: module 'sys' has no attribute 'no_such_pump'. onnx>=",
        ),
    ],
)  # fmt: skip
def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, package: str, version: str, source: str, arguments: list[str], line: str
) -> None:
    (tmp_path / f"{package}.py").write_text(source)
    (tmp_path / f"{package}-{version}.dist-info").mkdir()
    (tmp_path / f"{package}-{version}.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {COMMAND}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: DependencyError: {line}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert "pip install --upgrade '" in done.stderr


def test_a_deprecation_is_an_error_where_our_own_modules_cause_it() -> None:
    source = "import warnings; warnings.warn('old', DeprecationWarning)"
    for ours in ("tocom.part", "test_part", "conftest"):
        with pytest.raises(DeprecationWarning):
            exec(source, {"__name__": ours})
    with warnings.catch_warnings(record=True) as shown:
        exec(source, {"__name__": "timm.part"})
    assert [str(each.message) for each in shown] == ["old"]
