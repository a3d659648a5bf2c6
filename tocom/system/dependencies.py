"""The packages that tocom needs: names that load them on first use, and one line on what is wrong with one of them."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module, metadata, util
from pathlib import Path
from types import TracebackType
from typing import Any

from tocom.errors import DependencyError, TocomError

__all__ = ["Requirement", "explain", "importing", "installed", "lazy_names", "package_folders", "requirements"]

# Where a package is imported under another name than its distribution's.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "cuda": "cuda-python",
    "pynvml": "nvidia-ml-py",
    "tensorrt_rtx": "tensorrt-rtx-cu13-bindings",
}


class Requirement:
    """One line of what pyproject.toml declares.

    Attributes:
        package: The distribution's name, lower case with dashes.
        version: The versions that tocom works with, as pip writes them, such as ``>=1.0.17``; empty for any.
        extra: The extra of tocom that brings it; empty for the base install.
    """

    def __init__(self, line: str) -> None:
        what, _, condition = line.partition(";")
        name = re.match(r"[\w.-]+", what)[0]  # type: ignore[index]
        self.package = _dashed(name)
        self.version = re.sub(r"^\s*\[.*\]", "", what[len(name) :]).strip()
        extra = re.search(r"extra == ['\"]([\w-]+)", condition)
        self.extra = extra[1] if extra else ""

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install 'tocom[{self.extra}]'" if self.extra else "pip install tocom"

    @property
    def upgrade(self) -> str:
        """The command that brings a version which fits."""
        return f"pip install --upgrade '{self.package}{self.version}'"

    def met_by(self, version: str) -> bool:
        """Return whether ``version`` is not older than what is declared."""
        floor = re.search(r"[>=]=([\d.]+)", self.version)
        return floor is None or _release(version) >= _release(floor[1])


def lazy_names(
    root: str, names_of: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``: each public name loads the module it lives in on first use.

    Args:
        root: The package's name.
        names_of: The public names that live in each module. No module may have the name of one that lives in it:
            importing it would replace the name by the module.
    """
    homes = {name: module for module, names in names_of.items() for name in names}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {root!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}")
        with importing():
            return getattr(import_module(homes[name]), name)

    return get, lambda: sorted(homes)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Let an import inside fail with its cause.

    Raises:
        DependencyError: A declared package is missing, too old, or broken.
        ImportError: Anything else that is an ``AttributeError``, which ``from … import`` would take for a missing name.
    """
    try:
        yield
    except Exception as error:
        if explained := explain(error):
            raise explained from error
        if isinstance(error, AttributeError):
            raise ImportError(f"{type(error).__name__}: {error}") from error
        raise


def explain(error: BaseException) -> DependencyError | None:
    """Return what is wrong with a package that tocom declares, if that is why ``error`` was raised.

    A package that is missing or too old explains any error in it; one that fits explains errors of its import alone.
    """
    if isinstance(error, TocomError):
        return None
    ours, chain, importing = _foreign_frames(error.__traceback__)
    if isinstance(error, ImportError) and error.name:
        chain, importing = [*chain, error.name.partition(".")[0]], True
    text = f"{type(error).__name__}: {error}"
    declared = [found for module in reversed(chain) if (found := _requirement(module, ours))]
    for needed in declared:
        version = installed(needed.package)
        if version is None and isinstance(error, ModuleNotFoundError):
            return DependencyError(
                f"The package {needed.package} is not installed; {needed.package}{needed.version} is needed. "
                f"Install it: {needed.install}"
            )
        if version is not None and not needed.met_by(version):
            return DependencyError(
                f"The package {needed.package} is too old: {version} is installed, {needed.package}{needed.version} is "
                f"needed. Upgrade it: {needed.upgrade} ({text})"
            )
    if not declared or not importing:
        return None
    needed = declared[0]
    return DependencyError(
        f"The package {needed.package} {installed(needed.package) or '(version unknown)'} is broken: {text}. "
        f"{needed.package}{needed.version} is needed. Install it and what it needs again: {needed.upgrade}"
    )


def requirements() -> list[Requirement]:
    """Return everything that the installed tocom declares, the base install first."""
    try:
        lines = map(Requirement, metadata.requires("tocom") or ())
        return [line for line in lines if line.package != "tocom"]  # an extra that brings others names tocom itself
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return []


def installed(package: str) -> str | None:
    """Return the installed version of a distribution; None when there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_folders(name: str) -> list[Path]:
    """Return the folders of a package without importing it; none where it is not installed."""
    spec = util.find_spec(name)
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]


def _requirement(module: str, ours: str) -> Requirement | None:
    """Return what is declared of a module's package; of several lines, the one of the extra named as our part."""
    package = _dashed(_DISTRIBUTIONS.get(module, module))
    declared = [each for each in requirements() if each.package == package]
    return next((each for each in declared if each.extra in ours.split(".")), declared[0] if declared else None)


def _foreign_frames(trace: TracebackType | None) -> tuple[str, list[str], bool]:
    """Return our last module in a traceback, the top-level modules after it, and whether one of them was imported."""
    ours, modules, importing = "", list[str](), False
    for frame, _ in traceback.walk_tb(trace):
        name = str(frame.f_globals.get("__name__", ""))
        module = name.partition(".")[0]
        if module == "tocom":
            ours, modules, importing = name, [], False
        else:
            modules.append(module)
            importing = importing or frame.f_code.co_name == "<module>"
    return ours, modules, importing


def _release(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.match(r"[\d.]*\d", version)[0].split(".")]  # type: ignore[index]
    return (*numbers, *(0 for _ in range(4 - len(numbers))))


def _dashed(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
