"""Write which versions were tested into docs/versions.md: those that the given environments hold.

``make versions`` runs the tests in both environments first; another environment that passed may be named after them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tocom.system.dependencies import requirements

PAGE = Path(__file__).parents[2] / "docs" / "versions.md"
LEFT_OUT = ("bench", "docs", "test", "dev", "tensorrt", "cuda", "cuda13", "pycuda")
LOOK = """
import json, platform, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"Python": platform.python_version(), **found}))
"""


def main() -> None:
    declared = {each.package: each for each in requirements() if each.extra not in LEFT_OUT}
    environments = [
        json.loads(
            subprocess.run(
                [Path(folder, "bin", "python"), "-c", LOOK, *declared], check=True, capture_output=True
            ).stdout
        )
        for folder in sys.argv[1:]
    ]
    python = metadata.metadata("tocom")["Requires-Python"]
    rows = [("Python", python), *((name, declared[name].version or "any") for name in sorted(declared))]
    heads = ("package", "allowed", "lowest tested", *("newest tested" for _ in environments[1:]))
    table = [heads, tuple("---" for _ in heads)]
    for name, allowed in rows:
        table.append((name, f"`{allowed}`", *(found.get(name, "–") for found in environments)))
    text = PAGE.read_text()
    written = "".join(f"| {' | '.join(row)} |\n" for row in table)
    PAGE.write_text(re.sub(r"(?<=<!-- versions -->\n).*(?=<!-- end -->)", lambda _: written, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
