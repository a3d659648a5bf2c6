"""Write tensors as safetensors, atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tocom.errors import OutputError
from tocom.files import atomic_path

__all__ = ["save_tensors"]


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata to one safetensors file.

    Raises:
        OutputError: The file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as beside:
        try:
            save_file(plain, beside, metadata=metadata)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OutputError(f"Cannot write {path}: {error}. Free some space, or choose another folder.") from error
