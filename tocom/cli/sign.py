"""``tocom sign``: vouch for a bundle with a key, or make one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tocom.cli.app import console, print_json
from tocom.errors import RequestError

__all__ = ["sign"]


def sign(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle's folder.")] = None,
    key: Annotated[Path | None, typer.Option(help="File with an Ed25519 private key, PEM.")] = None,
    new_key: Annotated[
        Path | None, typer.Option(help="Make a key pair: the private key here, the public one beside it as .pub.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print key id and signed files as JSON.")] = False,
) -> None:
    """Sign the manifest, and with it every file of the export, and the engines and alignments that are there now."""
    from tocom.formats import signatures
    from tocom.formats.verification import verify

    if (key is None) == (new_key is None):
        raise RequestError("Give --key to sign a bundle, or --new-key to make a key pair.")
    if new_key is not None:
        if bundle is not None:
            raise RequestError("--new-key makes a key pair alone. Then sign: tocom sign BUNDLE --key KEY.")
        made = signatures.new_key(new_key)
        if as_json:
            print_json({"key_id": made.key_id, "private": str(new_key), "public": f"{new_key}.pub"})
        else:
            typer.echo(f"key {made.key_id}: {new_key} (private: keep it off the devices), {new_key}.pub (public)")
        return
    if bundle is None or key is None:
        raise RequestError("Name the bundle to sign: tocom sign BUNDLE --key KEY.")
    # Nobody vouches for a damaged bundle.
    for damaged in verify(bundle).problems:
        if damaged.kind != "profile":  # profiles are not signed
            raise RequestError(f"{bundle} is not signed: {damaged.file}: {damaged.problem}")
    signature = signatures.sign(bundle, key)
    if as_json:
        print_json({"key_id": signature.key_id, "file": str(signature.path), "files": dict(signature.files)})
    else:
        console.print(f"signed {len(signature.files)} files with key {signature.key_id}")
        typer.echo(str(signature.path))
