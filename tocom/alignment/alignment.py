"""Alignments of one model: a map per degree, what they are bound to, and their file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tocom.alignment.ridge import FeatureMap
from tocom.compensator.compensator import Compensator, model_name, model_sha256
from tocom.compensator.tensor_file import read_tensors, save_tensors
from tocom.errors import AlignmentError
from tocom.formats.device_alignment import Linear

__all__ = ["FORMAT", "VERSION", "AlignedDropout", "Alignment", "Binding", "aligned_head", "is_alignment"]

FORMAT, VERSION = "tocom-alignment", "1"


@dataclass(frozen=True)
class Binding:
    """What an alignment was fitted on; with anything else it is wrong.

    Attributes:
        model: timm name.
        model_sha256: Of the model's weights, those of its classifier left out: the features do not know it.
        compensator_sha256: sha256 of the compensator's weights; empty without one.
        scale: Scale of the compensator; 0 without one.
        method: ``merge`` or ``prune``.
        fuse: Whether pruning fuses the removed tokens.
        family: Family of the degrees.
        source_degree: Whose features are the aim.
        image_size: Such as ``224x224``.
    """

    model: str
    model_sha256: str
    compensator_sha256: str
    scale: float
    method: str
    fuse: bool
    family: str
    source_degree: int
    image_size: str

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        compensator: Compensator | None,
        scale: float | None,
        method: str,
        fuse: bool,
        family: str,
        source_degree: int,
    ) -> Binding:
        """Return the binding to a dense timm Vision Transformer and the way it is compressed."""
        return cls(
            model=model_name(model),
            model_sha256=model_sha256(model, without="head."),
            compensator_sha256="" if compensator is None else model_sha256(compensator),
            scale=0.0 if compensator is None else compensator.check_scale(scale),
            method=method,
            fuse=fuse,
            family=family,
            source_degree=source_degree,
            image_size="x".join(str(side) for side in model.patch_embed.img_size),
        )


@dataclass(frozen=True)
class Alignment:
    """The maps of a model's degrees.

    Attributes:
        binding: What they were fitted on.
        maps: Per degree; one that is refused stands for the identity.
        images: How many they were fitted on.
        checked_on: How many others said whether they help; 0 where each fifth of the images did.
        metadata: Further strings that stand in the file.
    """

    binding: Binding
    maps: Mapping[int, FeatureMap]
    images: int
    checked_on: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    def at(self, degree: int | Sequence[int]) -> Linear | None:
        """Return the map of a degree; None where features stay as they are: at the source degree, and where refused.

        Raises:
            AlignmentError: It has no such degree.
        """
        if degree == self.binding.source_degree:
            return None
        if not isinstance(degree, int) or degree not in self.maps:
            raise AlignmentError(
                f"The alignment has degrees {', '.join(map(str, sorted(self.maps)))}, not {degree}. Fit one with "
                f"--degrees that names {degree}, or leave that degree out."
            )
        return self.maps[degree].linear

    def check_fits(self, binding: Binding, channels: int) -> None:
        """Raise AlignmentError, naming the first difference, unless it was fitted on the same, for so many channels."""
        fitted, asked = asdict(self.binding), asdict(binding)
        for name, value in fitted.items():
            if name != "model" and asked[name] != value:
                raise AlignmentError(
                    f"The alignment was fitted with {name} {value!r}, asked for is {asked[name]!r}. Use what it was "
                    "fitted with, or fit another: tocom align."
                )
        for degree, each in self.maps.items():
            if each.linear is not None and len(each.linear.offset) != channels:
                raise AlignmentError(
                    f"The alignment's map of degree {degree} has {len(each.linear.offset)} channels, the model's "
                    f"features have {channels}. Fit it again: tocom align."
                )

    def describe(self) -> dict[str, Any]:
        """Return what ``tocom align`` and manifests show."""
        return {**self._content(), **self.metadata}

    def _content(self) -> dict[str, Any]:
        return {
            **asdict(self.binding),
            "images": self.images,
            "checked_on": self.checked_on,
            "degrees": {str(degree): asdict(each.judged) for degree, each in sorted(self.maps.items())},
        }

    def save(self, path: Path | str) -> None:
        """Write the maps and what they are bound to as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        tensors = {}
        for degree, each in self.maps.items():
            if each.linear is not None:
                tensors[f"degree.{degree}.matrix"] = torch.from_numpy(each.linear.matrix)
                tensors[f"degree.{degree}.offset"] = torch.from_numpy(each.linear.offset)
        own = {"format": FORMAT, "version": VERSION, "alignment": json.dumps(self._content())}
        save_tensors(path, tensors, {**self.metadata, **own})

    @classmethod
    def load(cls, path: Path | str) -> Alignment:
        """Read an alignment; names, shapes and metadata must be exactly right.

        Raises:
            AlignmentError: The file is missing, damaged, of another format or version, or inconsistent.
        """
        path = Path(path)
        tensors, metadata = read_tensors(path, AlignmentError, (FORMAT, VERSION), "np")
        try:
            content = json.loads(metadata.pop("alignment"))
            names = set(Binding.__dataclass_fields__)
            binding = Binding(**{name: content[name] for name in names})
            maps = {int(degree): _map(int(degree), entry, tensors) for degree, entry in content["degrees"].items()}
            images, checked_on = int(content["images"]), int(content["checked_on"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AlignmentError(f"{path} is inconsistent ({error}). Fit it again: tocom align.") from error
        if tensors:
            raise AlignmentError(
                f"{path} holds {sorted(tensors)[0]!r}, which no degree has. Fit it again: tocom align."
            )
        widths = {len(each.linear.offset) for each in maps.values() if each.linear is not None}
        if len(widths) > 1:
            raise AlignmentError(f"{path}: its maps have widths {sorted(widths)}. Fit it again: tocom align.")
        return cls(binding, maps, images, checked_on, metadata)


def is_alignment(path: Path) -> bool:
    """Return whether a safetensors file says that it is an alignment; an unreadable one does not."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def _map(degree: int, entry: Mapping[str, Any], tensors: dict[str, NDArray[Any]]) -> FeatureMap:
    """Return the map of a degree's entry, and take its tensors away."""
    linear = None
    if entry["used"]:
        matrix, offset = tensors.pop(f"degree.{degree}.matrix"), tensors.pop(f"degree.{degree}.offset")
        if matrix.ndim != 2 or matrix.shape != (matrix.shape[0],) * 2 or offset.shape != matrix.shape[:1]:
            raise ValueError(f"degree {degree}: shapes {matrix.shape} and {offset.shape}")
        if not (matrix.dtype == offset.dtype == np.float32 and np.isfinite(matrix).all() and np.isfinite(offset).all()):
            raise ValueError(f"degree {degree}: values must be float32 and finite")
        linear = Linear(matrix, offset)
    figures = (float(entry[name]) for name in ("strength", "gap", "aligned_gap"))
    return FeatureMap(linear is not None, *figures, int(entry["directions"]), linear)


class AlignedDropout(nn.Module):
    """A map of pooled features where timm has the dropout before the head, so that names in state dicts stay.

    Args:
        found: The map; None holds the identity, for a graph that every degree's map is put in.
        channels: Width of the features.
        dropout: What stood there.
    """

    matrix: Tensor
    offset: Tensor

    def __init__(self, found: Linear | None, channels: int, dropout: nn.Module) -> None:
        super().__init__()
        held = found or Linear(np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32))
        self.register_buffer("matrix", torch.from_numpy(held.matrix.copy()), persistent=False)
        self.register_buffer("offset", torch.from_numpy(held.offset.copy()), persistent=False)
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Return features [batch, channels], mapped."""
        matrix, offset = self.matrix.to(features), self.offset.to(features)
        return self.dropout(features @ matrix + offset)


def aligned_head(head: nn.Linear, found: Linear | None) -> tuple[Tensor, Tensor]:
    """Return weight [classes, channels] and bias [classes] of the head behind a map, as one layer, float32."""
    weight = head.weight.detach().cpu().double()
    bias = torch.zeros(len(weight)).double() if head.bias is None else head.bias.detach().cpu().double()
    if found is not None:
        bias = bias + weight @ torch.from_numpy(found.offset).double()
        weight = weight @ torch.from_numpy(found.matrix).double().T
    return weight.float(), bias.float()
