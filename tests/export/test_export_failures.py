"""What goes wrong in an export ends in one error, and leaves what was there before."""

from __future__ import annotations

import copy
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import SOURCE, Exported, places, run_onnx
from families import ROTARY
from small_vits import busy_compensator, small_vit
from torch import nn

from tocom import compress
from tocom.compression.blocks import CompressedBlocks
from tocom.errors import ExportError, OutputError
from tocom.export import export, pipeline
from tocom.export.graph.check import check_onnx, equally_right, sample_images
from tocom.formats.bundle import WEIGHTS_NAME, Bundle


@pytest.fixture
def copied(plain: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain.bundle.path, tmp_path / "bundle"))


@pytest.mark.parametrize("degree", [0, 3])
def test_the_check_sees_one_wrong_weight_matrix(plain: Exported, copied: Path, degree: int) -> None:
    reference = compress(plain.model, degree, compensator=plain.compensator, source_degree=SOURCE)
    onnx_file = copied / f"degree-{degree:02d}.onnx"
    good = check_onnx(onnx_file, reference, plain.images(3), precision="fp32", batch=None)
    assert good.undecided.shape == (3,)
    assert good.max_abs_difference <= 1e-4
    offset, length = places(plain.graph(degree))["blocks.1.attn.qkv.v_weight"]
    content = bytearray((copied / WEIGHTS_NAME).read_bytes())
    weight = np.frombuffer(content, np.float32, length // 4, offset)
    weight *= 1.01
    (copied / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(ExportError, match=rf"degree-{degree:02d}\.onnx differs from torch by .* allowed is"):
        check_onnx(onnx_file, reference, plain.images(3), precision="fp32", batch=None)


class Undecided(nn.Module):
    """A model that answers otherwise in float32 than in any other precision, as one does at a near-tie."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) + (1.0 if images.dtype == torch.float32 else 0.0)


def test_the_check_needs_a_conclusive_image(plain: Exported, copied: Path) -> None:
    reference = Undecided(compress(plain.model, 3, compensator=plain.compensator, source_degree=SOURCE))
    with pytest.raises(ExportError, match="could not be checked: on all 2 images rounding alone"):
        check_onnx(copied / "degree-03.onnx", reference, plain.images(2), precision="fp32", batch=None)


def at_a_near_tie(model: nn.Module, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return an image between two at which float64 torch is about to choose other tokens: its output jumps there."""
    precise = copy.deepcopy(model).double()
    with torch.no_grad():
        for _ in range(60):
            middle = (first.double() + second.double()).div(2).float()
            if middle.equal(first) or middle.equal(second):
                break
            left, centre, right = (precise(image.double()) for image in (first, middle, second))
            jumps_left = (left - centre).abs().max() > (centre - right).abs().max()
            first, second = (first, middle) if jumps_left else (middle, second)
    return first


def test_the_check_leaves_out_an_image_at_which_rounding_decides(plain: Exported) -> None:
    """Float64 confirms float32 there, and ONNX Runtime, which sums in another order, is as right with other tokens."""
    reference = compress(plain.model, 3, compensator=plain.compensator, source_degree=SOURCE)
    images = torch.from_numpy(plain.images(2))
    image = at_a_near_tie(reference, images[:1], images[1:])
    equal = [reference, *(model.float() for model in equally_right(reference, "fp32"))]
    got = torch.from_numpy(run_onnx(plain.bundle.onnx_path(3), image.numpy()))
    other = next(model for model in equal if (model(image) - got).abs().max() > 1e-3)
    both = np.concatenate([image.numpy(), plain.images(1)])
    result = check_onnx(plain.bundle.onnx_path(3), other, both, precision="fp32", batch=None)
    assert result.undecided.sum() == 1


def test_half_precision_leaves_out_an_image_at_which_its_rounding_decides(tmp_path: Path) -> None:
    """No copy in half precision chooses other tokens there, and yet the file does; weights off by two units do too."""
    if not ROTARY[0].known:
        pytest.skip("this timm has no DINOv3")
    model = ROTARY[0].build()
    bundle = export(model, tmp_path / "b", degrees=(4,), precision="fp16", compensator=busy_compensator(model))
    assert bundle.manifest["degrees"][0]["check"]["undecided"] == 1


def test_half_precision_keeps_in_float32_what_would_overflow(tmp_path: Path) -> None:
    """Activations beyond half precision's 65504: what holds them stays in float32, by name."""
    model = small_vit(side=32, depth=1)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(3e4)
    export(model, tmp_path / "bundle", degrees=(0,), precision="fp16")
    kept = Bundle(tmp_path / "bundle").manifest["kept_in_float32"]
    assert kept
    assert 0 in {entry["block"] for entry in kept}


def wrong_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the export a defect: one of the projections that it writes is slightly off."""
    right = pipeline.projection_weights

    def wrong(*args: Any, **options: Any) -> Any:
        tensors = right(*args, **options)
        tensor = tensors["blocks.0.attn.qkv.v_weight"]
        if isinstance(args[0].blocks, CompressedBlocks):
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.02).astype(np.float32).tobytes()
        return tensors

    monkeypatch.setattr(pipeline, "projection_weights", wrong)


@pytest.mark.parametrize("check", [True, False])
def test_a_model_whose_answers_are_no_numbers_is_refused(tmp_path: Path, check: bool) -> None:
    model = small_vit()
    with torch.no_grad():
        model.head.weight.fill_(3e38)  # finite, as all weights must be; its sums are not
    with pytest.raises(ExportError, match=r"in torch and float32, answers 4 of 4 check images with NaN or infinity"):
        export(model, tmp_path / "bundle", degrees=(0, 3), check=check)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("an export whose ONNX does not compute what torch computes", outcome="ExportError; nothing is left")
def test_a_wrong_export_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong_weights(monkeypatch)
    with pytest.raises(ExportError, match=r"degree-03\.onnx differs from torch") as caught:
        export(small_vit(), tmp_path / "bundle", degrees=(0, 3))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert not export(small_vit(), tmp_path / "bundle", degrees=(0, 3), check=False).manifest["degrees"][1]["check"]


@pytest.mark.fault("an export over an old bundle that fails", outcome="the old bundle stays")
def test_a_failed_overwrite_keeps_the_old_bundle(
    plain: Exported, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Bundle(copied).fingerprint
    wrong_weights(monkeypatch)
    with pytest.raises(ExportError, match="differs from torch"):
        export(plain.model, copied, degrees=(3,), overwrite=True)
    assert Bundle(copied).fingerprint == before
    assert list(copied.parent.iterdir()) == [copied]


def test_overwriting_is_asked_for(plain: Exported, copied: Path) -> None:
    (copied / "profiles").mkdir()
    with pytest.raises(OutputError, match=r"it is not empty\. Choose another, or pass --overwrite"):
        export(plain.model, copied, degrees=(0,))
    assert list(Bundle(copied).degrees) == list(plain.bundle.degrees)
    assert list(export(plain.model, copied, degrees=(0,), overwrite=True, check=False).degrees) == [0]
    assert {path.name for path in copied.iterdir()} == {
        "bundle.json",
        "degree-00.onnx",
        "references.bin",
        WEIGHTS_NAME,
    }
    assert list(copied.parent.iterdir()) == [copied]
    empty = copied.parent / "empty"
    empty.mkdir()
    assert list(export(plain.model, empty, degrees=(0,), check=False).degrees) == [0]


def test_places_that_cannot_be_written(plain: Exported, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for out, message in (
        (file, "a file of that name is there"),
        (file / "bundle", "Cannot write .*bundle"),
        (Path("/proc/none/bundle"), "Cannot write /proc/none"),
    ):
        with pytest.raises(OutputError, match=message):
            export(plain.model, out, degrees=(0,))
    assert file.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.fault("an export that may write no more", outcome="OutputError; nothing is left")
def test_no_room_is_an_output_error_and_leaves_nothing(plain: Exported, tmp_path: Path) -> None:
    """A limit on the size of files stops the writing half-way, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*bundle"):
            export(plain.model, tmp_path / "bundle", degrees=(0,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("Ctrl-C during an export", outcome="nothing is left")
def test_an_interrupt_leaves_nothing(plain: Exported, tmp_path: Path) -> None:
    def press_ctrl_c(what: str, done: int, total: int) -> None:
        assert 0 <= done < total
        if what.startswith("checking degree 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(plain.model, tmp_path / "bundle", degrees=(0, 3), progress=press_ctrl_c)
    assert list(tmp_path.iterdir()) == []


def test_sample_images_are_the_same_every_time_and_spread() -> None:
    images = sample_images((3, 70, 56), count=3)
    assert images.shape == (3, 3, 70, 56)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, sample_images((3, 70, 56), count=3))
    assert 0.5 < images.std() < 3
    assert np.abs(images[0] - images[1]).mean() > 0.1


def test_a_model_in_training_mode_exports_as_it_would_run(tmp_path: Path) -> None:
    """Dropout and the model's flags: the export is of the evaluated model, and leaves the flags alone."""
    options = {"depth": 1, "drop_path_rate": 0.3, "proj_drop_rate": 0.2}
    model = small_vit(**options).train()
    bundle = export(model, tmp_path / "bundle", degrees=(3,))
    assert all(module.training for module in model.modules())
    images = sample_images((3, 80, 80), count=1)
    with torch.inference_mode():
        want = compress(small_vit(**options), 3)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_onnx(bundle.onnx_path(3), images), want, rtol=1e-4, atol=1e-4)
