"""The tutorial in a fresh clone with its own environment, word by word; then every other page's commands there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from documented_blocks import Shell, blocks, is_shape_of

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
# Two thousand steps are an hour.
STAND_INS = {"README.md": {"--steps 2000": "--steps 2"}}


def pages() -> list[str]:
    """Return the pages, but for the tutorial, that have commands which are run."""
    every = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        str(page.relative_to(ROOT))
        for page in every
        if page != TUTORIAL and any(block.language == "sh" and block.is_run for block in blocks(page))
    ]


def test_shapes_are_compared():
    shown = "┏━━┳━━┓\n│ 4 │ 1.5 ms │\n…\nlast answer: nut at degree 0, {0: 3…}\n"
    assert is_shape_of(shown, "┏━━━━┳━┓\n│ 16 │   22.75 ms │\nmore\nlast answer: nut at degree 8, {0: 41, 8: 2}\n\n")
    assert is_shape_of(shown, "┏━━━━┳━┓\n│ 16 │ 22.75 ms │\nlast answer: nut at degree 8, {0: 41}")
    assert not is_shape_of(shown, "┏━━━━┳━┓\n│ 16 │ 22.75 s │\nlast answer: nut at degree 8, {0: 41}")
    assert not is_shape_of(shown, "┏━━━━┳━┓\n│ 16 │ 22.75 ms │\nlast answer: nut at degree 8, {0: 41}\nand more")


@dataclass
class Walked:
    """What the tutorial leaves: a shell that stands in the clone, and a copy of the folder ``mine``."""

    shell: Shell
    mine: Path
    differences: list[str]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Follow the tutorial; its shell stands in the clone then, with the environment that the tutorial made."""
    folder = tmp_path_factory.mktemp("reader")
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("needs a git clone to clone")
    # python3 is the one that runs the tests: a machine's own may be too old or too new.
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(sys._base_executable)
    shell = Shell(folder, folder / "state", REPOSITORY=str(ROOT), OMP_NUM_THREADS="1", VIRTUAL_ENV="")
    shell.run(f"export PATH={folder}/bin:$PATH")
    differences = []
    try:
        for block in blocks(TUTORIAL):
            if block.language != "sh" or not block.is_run:
                continue
            printed = shell.run(block.content).replace(
                "  over budget", ""
            )  # how fast a machine is, is no matter of words
            if block.shown and not is_shape_of(block.shown, printed):
                differences.append(f"{block} shows\n{block.shown}\nbut it printed\n{printed}")
        shutil.copytree(shell.folder / "mine", folder / "mine")
        yield Walked(shell, folder / "mine", differences)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorial_works_word_by_word_in_a_fresh_clone(walked):
    assert not walked.differences, "\n".join(walked.differences)
    assert len([block for block in blocks(TUTORIAL) if block.shown]) >= 7


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", pages())
def test_the_commands_of_a_page_run(page, walked):
    mine = walked.shell.folder / "mine"
    shutil.rmtree(mine)
    shutil.copytree(walked.mine, mine)
    if page == "README.md":  # it makes the bundle itself
        shutil.rmtree(mine / "bundle")
    for block in blocks(ROOT / page):
        content = block.content
        for said, stand_in in STAND_INS.get(page, {}).items():
            content = content.replace(said, stand_in)
        if block.is_run and block.language == "sh":
            walked.shell.run(content)
        elif block.is_run and page == "docs/tensorrt.md" and block.language == "python":
            walked.shell.run(f"python - <<'END'\n{content}END")
