"""Loading models: by name, from checkpoints, and one readable line for whatever does not fit."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from tocom import load_model
from tocom.compensator.compensator import model_sha256
from tocom.compression.loading.preprocessing import input_config
from tocom.errors import ModelError

NAME = "test_vit3"  # timm's own small model: nine blocks of 96 channels
OPTIONS = {"num_classes": 3, "image_size": 64}


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return load_model(NAME, weights="random", **OPTIONS).model


def test_random_weights_are_seeded_and_said_to_be_random(model: VisionTransformer) -> None:
    again = load_model(NAME, weights="random", **OPTIONS)
    assert (again.name, again.weights, again.labels) == (NAME, "random", None)
    assert model_sha256(again.model) == model_sha256(model)
    assert model_sha256(load_model(NAME, weights="random", seed=1, **OPTIONS).model) != model_sha256(model)
    assert not model.training


@pytest.mark.parametrize("form", ["safetensors", "pth", "state_dict", "model"])
def test_checkpoints_give_back_the_model(model: VisionTransformer, tmp_path: Path, form: str) -> None:
    state = model.state_dict()
    path = tmp_path / ("m.safetensors" if form == "safetensors" else "m.pth")
    if form == "safetensors":
        save_file(state, path, metadata={"labels": "a\nb\nc"})
    else:
        torch.save(state if form == "pth" else {form: state, "epoch": 3}, path)
    loaded = load_model(NAME, weights=path, image_size=64)  # the number of classes is the checkpoint's
    assert model_sha256(loaded.model) == model_sha256(model)
    assert loaded.weights == "file"
    assert loaded.labels == (["a", "b", "c"] if form == "safetensors" else None)


State = dict[str, torch.Tensor]
MISFITS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda state: state.pop("blocks.4.mlp.fc1.weight"), r"missing blocks\.4\.mlp\.fc1\.weight"),
    "unexpected": (lambda state: state.update(extra=torch.ones(1)), "unexpected extra"),
    "another shape": (
        lambda state: state.update({"norm.bias": torch.ones(5)}),
        r"norm\.bias has shape \(5,\), expected \(96,\)",
    ),
    "many": (
        lambda state: [state.pop(key) for key in list(state) if "blocks.0.mlp" in key or "blocks.0.attn" in key],
        "; and [0-9]+ more",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_checkpoint_that_does_not_fit(model: VisionTransformer, tmp_path: Path, kind: str) -> None:
    change, message = MISFITS[kind]
    state = dict(model.state_dict())
    change(state)
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(NAME, weights=tmp_path / "m.safetensors", **OPTIONS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


MADE_BY_ATTACK = Path(tempfile.gettempdir()) / f"tocom-attack-{os.getpid()}"


class Attack:
    """What a pickle may do to whoever opens it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (MADE_BY_ATTACK.touch, ())


@pytest.mark.fault(
    "backbone weights that are empty, no checkpoint, or a pickle that runs code",
    outcome="ModelError; no code of it runs",
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Cannot read the checkpoint"),
        (b"no checkpoint", "Cannot read the checkpoint"),
        (pickle.dumps(Attack(), protocol=2), "Cannot read the checkpoint"),
        (None, "does not exist"),
    ],
    ids=["empty", "text", "code", "none"],  # the code names a file of its own in every process
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_no_checkpoint(tmp_path: Path, suffix: str, content: bytes | None, message: str) -> None:
    path = tmp_path / f"m.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(NAME, weights=path, **OPTIONS)
    assert "\n" not in str(caught.value)
    assert not MADE_BY_ATTACK.exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.ones(3)])
def test_a_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(ModelError, match="holds no state dict of tensors"):
        load_model(NAME, weights=tmp_path / "m.pth", **OPTIONS)


def test_a_truncated_checkpoint(model: VisionTransformer, tmp_path: Path) -> None:
    for name in ("m.pth", "m.safetensors"):
        path = tmp_path / name
        (torch.save if name.endswith("pth") else save_file)(model.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ModelError, match="Cannot read the checkpoint"):
            load_model(NAME, weights=path, **OPTIONS)


@pytest.mark.parametrize("name", ["deit_smal_patch16_224", "no_such_model", "", "vit"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ModelError, match=f"must be a timm model name. Got '{name}' instead"):
        load_model(name, weights="random")
    with pytest.raises(ModelError, match="Near it: deit"):
        load_model("deit_smal_patch16_224", weights="random")


@pytest.mark.parametrize("options", [{"num_classes": -1}, {"image_size": 0}, {"image_size": -32}])
def test_sizes_that_no_model_has(options: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"Cannot create test_vit3 with|'(num_classes|image_size)' parameter must be"):
        load_model(NAME, weights="random", **options)


def test_pretrained_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"Cannot load pretrained weights of test_vit3.*--weights FILE") as caught:
        load_model(NAME)
    assert "\n" not in str(caught.value)


def test_a_model_that_has_no_pretrained_weights() -> None:
    """Random weights must not pass for pretrained ones."""
    with pytest.raises(ModelError, match="Cannot load pretrained weights of vit_small_patch16_36x1_224"):
        load_model("vit_small_patch16_36x1_224")


def test_an_unsupported_model_is_refused() -> None:
    with pytest.raises(ModelError, match="ResNet is not supported"):
        load_model("test_resnet", weights="random")


def test_the_input_entry(model: VisionTransformer) -> None:
    entry = input_config(model)
    assert entry["shape"] == ["batch", 3, 64, 64]
    assert (entry["name"], entry["dtype"]) == ("images", "float32")
    assert len(entry["mean"]) == len(entry["std"]) == 3
    assert entry["interpolation"] in ("bilinear", "bicubic")
    assert 0 < entry["crop"] <= 1
