"""Code blocks of the documentation, and a shell that runs them one after the other, as a reader does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Stand in the line before a block that is not run, and say why.
NEEDS_DEVICE = "<!-- needs a device -->"
NOT_RUN = re.compile(r"<!-- not run by the tests: .{10,} -->")
_BLOCK = re.compile(
    r"(?:^(?P<mark><!--[^\n]*-->)\n+)?^```(?P<language>\S*)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NUMBER = re.compile(r"[-+]?\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: File that it stands in.
        line: Its first line there.
        language: ``sh``, ``text``, ``python``, …
        content: What stands between the fences.
        mark: A comment in the line before it, or "".
        shown: Of commands: the ``text`` block that follows at once, which is what they print; or "".
    """

    page: Path
    line: int
    language: str
    content: str
    mark: str
    shown: str = ""

    @property
    def is_run(self) -> bool:
        """Whether nothing says that it is not."""
        return self.mark != NEEDS_DEVICE and not NOT_RUN.fullmatch(self.mark)

    @property
    def commands(self) -> list[str]:
        """The lines, those that a backslash continues joined, comments left out."""
        joined = re.sub(r"\\\n\s*", "", self.content)
        return [line for line in (re.sub(r"(^|\s)#.*", "", text).strip() for text in joined.splitlines()) if line]

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        shown = ""
        if (
            match["language"] == "text"
            and found
            and found[-1].language == "sh"
            and not text[end : match.start()].strip()
        ):
            last = found.pop()
            shown = match["content"]
            found.append(Block(last.page, last.line, last.language, last.content, last.mark, shown))
        else:
            line = text.count("\n", 0, match.start("language")) + 1
            found.append(Block(page, line, match["language"], match["content"], match["mark"] or ""))
        end = match.end()
    return found


class Shell:
    """Runs blocks one after the other: folder and environment that one leaves are the next one's."""

    def __init__(self, folder: Path, state: Path, **variables: str) -> None:
        self.folder, self._state = folder, state
        self._environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", **variables}

    def run(self, content: str, timeout_s: float = 2400.0) -> str:
        """Run commands and return what they print on stdout; progress and warnings go to stderr."""
        leave = f"pwd > {shlex.quote(f'{self._state}.folder')}; env -0 > {shlex.quote(f'{self._state}.environment')}"
        done = subprocess.run(
            ["bash", "-e", "-c", f"{content}\n{leave}"],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{content}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        self.folder = Path(Path(f"{self._state}.folder").read_text(encoding="utf-8").strip())
        pairs = Path(f"{self._state}.environment").read_text(encoding="utf-8").split("\0")
        self._environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        return done.stdout


def is_shape_of(shown: str, printed: str) -> bool:
    """Whether what is printed is what a page shows, but for figures.

    Numbers match numbers, blanks blanks. ``…`` stands for anything in a line; alone in a line, for any lines.
    """
    pattern = ""
    for line in _lines(shown):
        if line == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.split("…")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    """Return the lines without colours, frames' widths, and figures' values."""
    plain = re.sub(r"([━─═])\1+", r"\1", _NUMBER.sub("0", _ESCAPES.sub("", text)))
    plain = plain.replace(" – ", " 0 ")  # a cell without a figure
    plain = re.sub(r"0: 0(, 0: 0)+", "0: 0", plain)  # how many degrees were taken is a machine's matter
    return [line for line in (re.sub(r"\s+", " ", line).strip() for line in plain.splitlines()) if line]
