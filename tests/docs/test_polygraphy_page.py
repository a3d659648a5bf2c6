"""The page on Polygraphy, run as it stands: by Polygraphy itself, as far as a machine without a GPU goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documented_blocks import Shell, blocks
from op_plugin_fixtures import rtx  # noqa: F401
from small_vits import small_vit

from tocom.export import export

pytest.importorskip("polygraphy", reason="needs the extra tocom[dev]")

PAGE = Path(__file__).parents[2] / "docs" / "polygraphy.md"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("polygraphy")
    export(small_vit(depth=1, num_classes=3), folder / "mine" / "bundle", degrees=[0, 8])
    return folder


def run_blocks(language):
    return [block for block in blocks(PAGE) if block.language == language and block.is_run]


def test_the_commands_run(workplace):
    shell = Shell(workplace, workplace / "state", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (block,) = run_blocks("sh")
    said = shell.run(block.content)
    assert "Other Opsets: {'tocom': 1}" in said
    assert "Difference is within tolerance" in said
    assert "PASSED" in said


@pytest.mark.usefixtures("rtx")
def test_polygraphy_builds_with_tensorrt_rtx(workplace):
    (block,) = run_blocks("python")
    # Without the module's other name it is not found; with it the engine has layers of the functions alone.
    alone = block.content.replace("sys.modules.setdefault", "(lambda *ignored: None)") + "assert False"
    refused = subprocess.run([sys.executable, "-c", alone], cwd=workplace, capture_output=True, text=True)
    assert "Module: 'tensorrt_rtx' is required but could not be imported" in refused.stdout + refused.stderr
    built = subprocess.run(
        [sys.executable, "-c", f"{block.content}\nprint('bytes', len(bytes(engine)) > 10_000)"],
        cwd=workplace,
        capture_output=True,
        text=True,
    )
    assert built.stdout.endswith("bytes True\n"), built.stdout[-2000:] + built.stderr[-2000:]
