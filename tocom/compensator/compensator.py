"""The Token Compensator: low-rank weight deltas that carry a ViT from one compression degree to another.

Source: ToCom, arXiv 2408.06798 (ECCV 2024), section 3. One group per degree step; ``ToCom(m → n)`` is the sum of the
groups between ``m`` and ``n``, negative when going down.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tocom.compensator.low_rank import LowRank, attention_channels
from tocom.compensator.tensor_file import read_tensors, save_tensors
from tocom.errors import CompensatorError, DegreeError
from tocom.formats.families import EVERY, named_family
from tocom.formats.methods import check_method
from tocom.system.numbers import is_integer

__all__ = ["FORMAT", "VERSION", "Compensator", "model_name", "model_sha256"]

FORMAT, VERSION = "tocom-compensator", "1"
_NEEDED = ("model", "method", "family", "groups", "rank", "scale", "image_size", "base_sha256")
_LEARNED = "learned"
_SHOWN = ("depth", "channels", "groups", "rank", "scale", "method", "family")


class Compensator(nn.Module):
    """ToCom's weights for one backbone.

    Args:
        depth: Number of transformer blocks.
        channels: Width of the model.
        attention_channels: Width of q and v; the model's width in every common ViT.
        groups: Degree steps; degrees 0 … ``groups`` are within reach.
        rank: Rank of each group.
        scale: Factor ``s`` of the deltas in use.
        method: ``merge`` or ``prune``: what it was trained for.
        family: Along which the degrees of its groups are: see :mod:`tocom.formats.families`.
        metadata: Further strings that stand in the file.
    """

    def __init__(
        self,
        *,
        depth: int,
        channels: int,
        attention_channels: int | None = None,
        groups: int = 16,
        rank: int = 2,
        scale: float = 0.1,
        method: str = "merge",
        family: str = EVERY,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("depth", depth), ("channels", channels), ("groups", groups), ("rank", rank)):
            if not isinstance(value, int) or value < 1:
                raise CompensatorError(f"The {name!r} parameter must be a positive integer. Got {value!r} instead.")
        if not (math.isfinite(scale) and scale > 0):
            raise CompensatorError(f"The 'scale' parameter must be a positive number. Got {scale!r} instead.")
        self.depth, self.channels, self.groups, self.rank = depth, channels, groups, rank
        self.attention_channels = attention_channels or channels
        self.scale, self.method, self.family = float(scale), check_method(method), named_family(family, depth)
        self.metadata = dict(metadata or {})
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.attn = nn.Module()
            block.attn.q = LowRank(channels, self.attention_channels, groups, rank)
            block.attn.v = LowRank(channels, self.attention_channels, groups, rank)
            self.blocks.append(block)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        *,
        groups: int = 16,
        rank: int = 2,
        scale: float = 0.1,
        method: str = "merge",
        family: str = EVERY,
    ) -> Compensator:
        """Return an untrained compensator (it changes nothing yet) that fits a timm Vision Transformer."""
        metadata = {
            "model": model_name(model),
            "image_size": "x".join(str(side) for side in model.patch_embed.img_size),
            "positions": _positions(model),
            "base_sha256": model_sha256(model),
        }
        return cls(
            depth=len(model.blocks),
            channels=model.embed_dim,
            attention_channels=attention_channels(model.blocks[0].attn),
            groups=groups,
            rank=rank,
            scale=scale,
            method=method,
            family=family,
            metadata=metadata,
        )

    def extra_repr(self) -> str:
        """Show what fits what."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in _SHOWN)

    def share_dropout(self, share: tuple[int, int] | None) -> None:
        """Draw the dropout of a whole batch and use a part: from the first number on, of as many images as the second.

        So a batch that is split, over time or over processes, trains as it would in one piece, where the random
        generators stand as they would for the whole batch. None goes back to batches that are whole.
        """
        for block in self.blocks:
            block.attn.q.share = block.attn.v.share = share

    def delta(self, source: int, target: int) -> dict[str, Tensor]:
        """Return ``ToCom(source → target)`` without the scale.

        Returns:
            ``blocks.{i}.attn.{q|v}`` to a matrix [attention channels, channels], float32.

        Raises:
            CompensatorError: A degree is not within 0 … ``groups``.
        """
        self.check_degrees(source, target)
        low, high = sorted((source, target))
        sign = 1.0 if source <= target else -1.0
        with torch.no_grad():
            return {
                f"blocks.{index}.attn.{name}": sign * getattr(block.attn, name).delta(low, high)
                for index, block in enumerate(self.blocks)
                for name in ("q", "v")
            }

    def adapters(self) -> list[dict[str, LowRank]]:
        """Return for each block the low-rank groups of ``q`` and ``v``."""
        return [{"q": block.attn.q, "v": block.attn.v} for block in self.blocks]

    def window(self, source: int, target: int, scale: float | None = None) -> tuple[int, int, float]:
        """Return which groups ``ToCom(source → target)`` adds up: the first, the one behind the last, their factor."""
        low, high = sorted((source, target))
        return low, high, (1.0 if source <= target else -1.0) * self.check_scale(scale)

    def check_degrees(self, *degrees: int) -> None:
        """Raise CompensatorError unless all degrees are within 0 … ``groups``."""
        for degree in degrees:
            if not is_integer(degree, 0, self.groups):
                raise CompensatorError(
                    f"The compensator has {self.groups} groups: it reaches degrees 0 to {self.groups}. Got degree "
                    f"{degree!r}. Train one with 'groups' of at least {degree}, or choose a smaller degree."
                )

    def check_scale(self, scale: float | None) -> float:
        """Return the scale to use: ``scale``, or the compensator's own. Raise CompensatorError unless it is finite."""
        if scale is None:
            return self.scale
        if not math.isfinite(scale):
            raise CompensatorError(f"The 'scale' parameter must be a finite number. Got {scale!r} instead.")
        return scale

    def check_fits(self, model: nn.Module, *, method: str | None = None, family: str | None = None) -> None:
        """Raise CompensatorError unless width, depth and (if given) method and family are the model's."""
        found = {
            "depth": len(model.blocks),
            "channels": model.embed_dim,
            "attention_channels": attention_channels(model.blocks[0].attn),
        }
        for name, value in found.items():
            if getattr(self, name) != value:
                raise CompensatorError(
                    f"The compensator (of {self.metadata.get('model', 'an unnamed model')}) has {name} "
                    f"{getattr(self, name)}, the model {model_name(model)} has {value}. Use one trained for it."
                )
        trained, found_positions = self.metadata.get("positions", _LEARNED), _positions(model)
        if trained != found_positions:
            raise CompensatorError(
                f"The compensator (of {self.metadata.get('model', 'an unnamed model')}) was trained with {trained} "
                f"positions, the model {model_name(model)} has {found_positions} ones: "
                "its queries mean something else. Use one trained for it."
            )
        if method is not None and method != self.method:
            raise CompensatorError(
                f"The compensator was trained for method {self.method!r}, asked for is {method!r}. Run with "
                f"--method {self.method}, or train one for {method!r}."
            )
        if family is not None and named_family(family, self.depth) != self.family:
            raise CompensatorError(
                f"The compensator was trained for family {self.family!r}, asked for is {family!r}: its groups are steps"
                " of the degree along one family, and the same degree leaves other tokens in another. Run with its own,"
                f" or train one for {family!r}."
            )

    def save(self, path: Path | str) -> None:
        """Write the weights and their provenance as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        metadata = {
            **{name: value for name, value in self.metadata.items() if name != "file_sha256"},
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "family": self.family,
            "groups": str(self.groups),
            "rank": str(self.rank),
            "scale": repr(self.scale),
        }
        save_tensors(path, {name: tensor.float() for name, tensor in self.state_dict().items()}, metadata)

    @classmethod
    def load(cls, path: Path | str) -> Compensator:
        """Read a compensator; names, shapes and metadata must be exactly right.

        Raises:
            CompensatorError: The file is missing, damaged, of another format or version, or inconsistent.
        """
        path = Path(path)
        tensors, metadata = read_tensors(path, CompensatorError, (FORMAT, VERSION), "pt")
        missing = [name for name in _NEEDED if name not in metadata]
        if missing:
            raise CompensatorError(f"{path} lacks metadata: {', '.join(missing)}. Train it again with this tocom.")
        return cls._from_tensors(path, metadata, tensors).eval()

    @classmethod
    def _from_tensors(cls, path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Compensator:
        first = tensors.get("blocks.0.attn.q.down")
        first_up = tensors.get("blocks.0.attn.q.up")
        if first is None or first_up is None or first.ndim != 2 or first_up.ndim != 2:
            raise CompensatorError(f"{path} has no matrices 'blocks.0.attn.q.down' and '.up': it is not a compensator.")
        try:
            sizes = {name: int(metadata[name]) for name in ("groups", "rank")}
            scale = float(metadata["scale"])
            check_method(metadata["method"])
            named_family(metadata["family"], len(tensors) // 4)
        except DegreeError as error:
            raise CompensatorError(f"{path}: {error}") from error
        except ValueError as error:
            raise CompensatorError(f"{path}: groups, rank and scale must be numbers ({error}).") from error
        # Before anything of that size is made: the numbers are the file's word.
        if sizes["groups"] * sizes["rank"] != first.shape[0]:
            raise CompensatorError(
                f"{path}: its metadata says {sizes['groups']} groups of rank {sizes['rank']}, its tensors have "
                f"{first.shape[0]} rank rows. Train it again with this tocom."
            )
        # Without memory until every shape is the file's: many small tensors could ask for many large ones.
        with torch.device("meta"):
            compensator = cls(
                depth=len(tensors) // 4,
                channels=first.shape[1],
                attention_channels=first_up.shape[0],
                scale=scale,
                method=metadata["method"],
                family=metadata["family"],
                metadata=metadata,
                **sizes,
            )
        expected = {name: tuple(tensor.shape) for name, tensor in compensator.state_dict().items()}
        got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if expected != got:
            name = sorted(set(expected.items()) ^ set(got.items()))[0][0]
            raise CompensatorError(
                f"{path}: tensor {name} should have shape {expected.get(name)}, got {got.get(name)}."
            )
        wrong = [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype != torch.float32]
        if wrong:
            raise CompensatorError(
                f"{path}: every tensor must be float32, but {wrong[0]}. Train it again with this tocom."
            )
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise CompensatorError(f"{path} holds values that are not finite. Train it again.")
        compensator.load_state_dict(tensors, strict=True, assign=True)
        return compensator

    def describe(self) -> dict[str, Any]:
        """Return what ``tocom inspect`` shows."""
        return {
            **{name: getattr(self, name) for name in _SHOWN},
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
            **{key: value for key, value in self.metadata.items() if key not in _SHOWN},
        }


def _positions(model: nn.Module) -> str:
    return "rotary" if getattr(model, "rope", None) is not None else _LEARNED


def model_sha256(model: nn.Module, *, without: str = "") -> str:
    """Return the sha256 over the names, types, shapes and bytes of a model's parameters and buffers.

    Names that begin with ``without`` are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if without and name.startswith(without):
            continue
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_name(model: nn.Module) -> str:
    """Return the timm name that a model was created by, or its class where it carries none."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)
