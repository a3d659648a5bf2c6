"""Checkpoints of a training run: one file, replaced as a whole, that holds all that the next step depends on."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tocom.errors import OutputError, TrainingError, first_line
from tocom.system.files import atomic_path

__all__ = ["FORMAT", "VERSION", "load_checkpoint", "restore_rng", "rng_state", "save_checkpoint"]

FORMAT, VERSION = "tocom-training", 1


def save_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; a kill at any time leaves the old one or the new one.

    Args:
        path: The file.
        identity: What must be the same for a run to go on from here: numbers, strings, None.
        state: Tensors, numbers and containers of them, which ``weights_only`` loading allows.

    Raises:
        OutputError: The file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "identity": dict(identity), "state": dict(state)}, buffer)
    with atomic_path(path) as beside:
        beside.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state in a checkpoint of this very run.

    Raises:
        OutputError: The file is there but cannot be read.
        TrainingError: It is not a checkpoint, of another version, or of another run; the first field that differs is
            named.
    """
    try:
        # weights_only: a pickle may run code, a checkpoint must not.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OutputError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise TrainingError(
            f"Cannot read the checkpoint {path}: {first_line(error)}. It must be written by tocom train. Remove it "
            "to start again."
        ) from error
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise TrainingError(
            f"{path} has format {found[0]!r} version {found[1]!r}, not {FORMAT!r} version {VERSION}. "
            "Remove it to start again, or name another file."
        )
    saved = content["identity"]
    for name in dict.fromkeys((*identity, *saved)):
        if saved.get(name) != identity.get(name):
            raise TrainingError(
                f"The checkpoint {path} is of another run: its {name!r} is {saved.get(name)!r}, here it is "
                f"{identity.get(name)!r}. Resume with what it was started with, or name another checkpoint file."
            )
    state: dict[str, Any] = content["state"]
    return state


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the random generators that a step on the device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set the random generators to what :func:`rng_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
