"""tocom's own safetensors files, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tocom.errors import TocomError
from tocom.system.files import atomic_path, sha256_file

__all__ = ["read_tensors", "save_tensors"]

_MAX_TENSORS = 4096


def read_tensors(
    path: Path, error: type[TocomError], form: tuple[str, str], framework: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return tensors and metadata of a file; ``file_sha256`` stands in the place of format and version.

    Args:
        path: The file.
        error: What is raised.
        form: Format and version that it must have.
        framework: ``pt`` or ``np``: whose tensors.
    """
    name = form[0].removeprefix("tocom-")
    try:
        with safe_open(path, framework=framework) as file:
            metadata = dict(file.metadata() or {})
            # The format itself holds sizes to the file's; a count it does not.
            if len(file.keys()) > _MAX_TENSORS:
                raise error(f"{path} has {len(file.keys())} tensors, the most is {_MAX_TENSORS}: it is not tocom's.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as fault:
        raise error(
            f"Cannot read the {name} {path}: {fault}. It must be a safetensors file written by tocom."
        ) from fault
    found = metadata.pop("format", None), metadata.pop("version", None)
    if found != form:
        raise error(
            f"{path} has format {found[0]!r} version {found[1]!r}, not {form[0]!r} version {form[1]!r}. Make it again "
            "with this tocom."
        )
    return tensors, {**metadata, "file_sha256": sha256_file(path)}


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata to one safetensors file, atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not save_file: it writes under a name of its own beside the one it is given, and a kill would leave that there.
    content = save(plain, metadata=metadata)
    with atomic_path(path) as beside:
        beside.write_bytes(content)
