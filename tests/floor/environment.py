"""Make the environment of `make test-floor`: every package at the lowest version that pyproject.toml allows.

uv resolves it, as pip cannot aim low. uv reads none of pip's configuration, so this hands on what says where packages
come from. Packages that come with no wheel of the lowest version get the lowest that has one.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRAS = "all,test"


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "uv"], check=True)
    settings = pip_settings(python)
    certificates = {"SSL_CERT_FILE": settings["cert"]} if "cert" in settings else {}
    subprocess.run(
        [
            folder / "bin" / "uv", "pip", "install", "--quiet", "--python", python, "--resolution", "lowest-direct",
            "--only-binary", ":all:", "--no-binary", "tocom", *uv_options(settings), "--editable", f"{ROOT}[{EXTRAS}]",
        ],
        check=True,
        env={**os.environ, **certificates},
    )  # fmt: skip


def pip_settings(python: Path) -> dict[str, str]:
    """Return pip's configuration by the option's name; what the environment sets comes last in pip's list."""
    listed = subprocess.run([python, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    lines = sorted(listed.splitlines(), key=lambda line: line.startswith(":env:"))
    pairs = (line.split("=", 1) for line in lines)
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, value in pairs}


def uv_options(settings: dict[str, str]) -> list[str]:
    """Return uv's options for where pip looks for packages."""
    options = ["--index-strategy", "unsafe-best-match"]  # as pip: the version decides, not the order of the indexes
    if "index-url" in settings:
        options += ["--default-index", settings["index-url"]]
    for option, name in (("--index", "extra-index-url"), ("--find-links", "find-links")):
        for place in settings.get(name, "").split():
            options += [option, place]
    return options


if __name__ == "__main__":
    main()
