"""``tocom verify``: is every file of a bundle what it should be, and who signed it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tocom.cli.app import output, print_json
from tocom.errors import BundleError

__all__ = ["verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    key: Annotated[
        list[Path] | None, typer.Option(help="A trusted public key, PEM; repeatable. Refuses what none of them signed.")
    ] = None,
    probe: Annotated[
        bool, typer.Option(help="Load and run every degree too, in a process of its own that may crash or hang.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Check every file of a bundle, its engines, profiles and signatures; all problems are shown."""
    from tocom.formats.signatures import load_public_keys
    from tocom.formats.verification import verify as check

    found = check(bundle, None if not key else load_public_keys(key))
    if as_json:
        print_json(found.to_json())
    else:
        who = "signatures not checked: no --key"
        if found.signed_by is not None:
            who = f"signed by {', '.join(found.signed_by)}"
        table = Table("file", "kind", "by", "result", title=f"{bundle}, schema version {found.schema_version}, {who}")
        for file in found.files:
            result = Text("ok", "green") if file.by else Text("not checked")
            if file.problem is not None:
                result = Text(file.problem, "red")
            table.add_row(file.file, file.kind, file.by, result)
        output.print(table)
    if found.problems:
        first = found.problems[0]
        raise BundleError(
            f"{len(found.problems)} of {len(found.files)} files are not right, first {first.file}: {first.problem}"
        )
    if probe:
        from tocom.runtime.probe import probe as try_engines

        try_engines(bundle)
