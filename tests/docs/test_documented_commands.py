"""Commands, Python blocks and examples of the documentation are run, or at least understood, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from PIL import Image
from small_vits import small_vit

from tocom.bundle import Bundle
from tocom.export import export

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A block under this line is not run: it needs what the test machine lacks.
NEEDS_DEVICE = "<!-- needs a device -->"


def commands(text: str) -> list[str]:
    """Return the commands of the console blocks, continued lines joined."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = re.sub(r"\s+#.*", "", line.removeprefix("$ "))
            if re.match(r"(tocom|python|make|pip|torchrun)\b", line):
                found.append(line)
    return found


@pytest.fixture(scope="module")
def command_line():
    from importlib import import_module

    from tocom.cli import VERBS

    app = typer.Typer()
    for verb in VERBS:
        import_module(f"tocom.cli.{verb}").register(app)
    return typer.main.get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documented_commands_exist(page, command_line):
    """Every verb and option of every page is one that the command line knows, and every make target exists."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands(page.read_text(encoding="utf-8")):
        words = shlex.split(line)
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, line
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line
        elif words[0] == "tocom":
            _understand(command_line, words[1:], line)


def _understand(command: click.Command, words: list[str], line: str) -> None:
    try:
        context = command.make_context("tocom", list(words), resilient_parsing=False)
    except click.exceptions.Exit:
        return
    except click.ClickException as error:
        pytest.fail(f"{line}: {error.format_message()}")
    if isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, [*context.protected_args, *context.args])
        assert inner is not None, f"{line}: no command {name}"
        _understand(inner, rest, line)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the how-tos speak of: a bundle, a picture, the examples."""
    folder = tmp_path_factory.mktemp("workplace")
    model = small_vit(num_classes=3)
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


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_how_tos_run(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    entry = Bundle("mine/bundle").image_shape
    names = {"images": np.random.default_rng(0).standard_normal((1, *entry), np.float32)}
    blocks = python_blocks(ROOT / "docs" / "how-to.md")
    assert len(blocks) >= 10
    for block in blocks:
        exec(compile(block, "docs/how-to.md", "exec"), names)
    assert names["picture"].shape == (1, *entry)
    assert len(names["degrees"]) == 4
    assert names["logits"].shape == (1, 3)
    said = capsys.readouterr().out
    assert "budget" in said
    assert "\n8\n" in said


def test_the_readme_s_example_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    block = next(block for block in python_blocks(ROOT / "README.md") if "Runtime.open" in block)
    shape = Bundle("mine/bundle").image_shape
    names = {"images": np.zeros((1, *shape), np.float32)}
    exec(compile(block.replace('"bundle"', '"mine/bundle"'), "README.md", "exec"), names)
    assert names["result"].outputs["logits"].shape == (1, 3)


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
    run([sys.executable, script, "mine", "--steps", "2", "--images", "3"], tmp_path)
    from tocom.models import load_model

    loaded = load_model("test_vit3", weights=tmp_path / "mine" / "model.safetensors")
    assert loaded.labels == ["bolt", "nut", "washer"]
    assert sorted(path.name for path in (tmp_path / "mine" / "test").iterdir()) == loaded.labels


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_and_the_how_tos_run_word_by_word(tmp_path):
    """Run every command that needs no device, and find the words that the tutorial shows in what it prints."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copy(ROOT / "Makefile", tmp_path)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    shown = re.findall(r"```console\n(.*?)```", tutorial.replace(NEEDS_DEVICE + "\n```console", "```device"), re.DOTALL)
    ran = 0
    for block in shown:
        command, output, expected = None, "", []
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("$ "):
                command = shlex.split(line.removeprefix("$ "))
                output = run(command, tmp_path, 900)
                ran += 1
            else:
                expected += re.findall(r"[A-Za-z][A-Za-z_-]+", line)
        missing = [word for word in expected if word not in output]
        assert not missing, f"{command}: the tutorial shows {missing}, which is not in\n{output}"
    assert ran >= 6
    how_to = (
        (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8").replace(NEEDS_DEVICE + "\n```console", "```device")
    )
    for line in commands(how_to):
        run(shlex.split(line), tmp_path, 900)
