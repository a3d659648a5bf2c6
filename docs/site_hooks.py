"""What the site needs beyond mkdocs' settings: all pages in the menu, links out of docs/, and the package as it is."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
REST = "In depth"


# Before mkdocstrings, which looks once for build/api and does without it where a first build has not made it yet.
@event_priority(100)
def on_config(config: Any) -> Any:
    """Put pages that no section names under "In depth", and lay the package out for the API reference."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    folder = Path(config.docs_dir)
    rest = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.md"))
    for section in config.nav:
        if REST in section:
            section[REST] = [page for page in rest if page not in named]
    copy_package(ROOT / "build" / "api" / "tocom")
    return config


def copy_package(target: Path) -> None:
    """Copy the sources in the shape of the installed package: the reference reads files, it imports nothing."""
    shutil.rmtree(target, ignore_errors=True)
    # Copies, because links would be followed back to folders that lie side by side.
    python_alone = shutil.ignore_patterns("__pycache__", "native")
    shutil.copytree(ROOT / "tocom", target, ignore=python_alone)
    for part in ("export", "runtime", "calibration"):
        shutil.copytree(ROOT / part, target / part, ignore=python_alone)


def public_names(module: str) -> list[str]:
    """Return the full names of what a package's ``__init__.py`` imports and lists in ``__all__``."""
    path = ROOT / module.removeprefix("tocom.") / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    return [homes[name] for name in listed]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the reference of whole packages; name files outside docs/ in place of linking them."""
    markdown = re.sub(
        r"<!-- all of (tocom\.\w+) -->",
        lambda found: "\n".join(f"::: {name}" for name in public_names(found[1])),
        markdown,
    )
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)
