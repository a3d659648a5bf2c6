"""Write tensors as safetensors, atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from tocom.system.files import atomic_path

__all__ = ["save_tensors"]


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata to one safetensors file.

    Raises:
        OutputError: The file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not save_file: it writes under a name of its own beside the one it is given, and a kill would leave that there.
    content = save(plain, metadata=metadata)
    with atomic_path(path) as beside:
        beside.write_bytes(content)
