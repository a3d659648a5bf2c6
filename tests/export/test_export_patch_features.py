"""Bundles that give a feature for every patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small_vits import busy_compensator, small_images, small_vit

from tocom import compress
from tocom.compression.features import patch_features
from tocom.errors import BundleError, DegreeError
from tocom.export import export
from tocom.formats.bundle import Bundle
from tocom.formats.references import read_references
from tocom.runtime import Runtime

CASES: dict[str, dict[str, Any]] = {
    "merge": {"name": "vit_small_patch16_rope_224", "features": True},
    "prune": {"name": "vit_tiny_patch16_224", "method": "prune", "fuse": True, "family": "spaced:0,2"},
}
DEGREES = (0, 3, 6)


@pytest.fixture(scope="module", params=CASES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, Any], Bundle]:
    options = dict(CASES[request.param])
    model = small_vit(options.pop("name"))
    method, family = options.get("method", "merge"), options.get("family", "every")
    options["compensator"] = busy_compensator(model, groups=6, method=method, family=family)
    out = tmp_path_factory.mktemp("patches") / "bundle"
    bundle = export(model, out, degrees=DEGREES, batch=(1, 2, 3), patch_features=True, **options)
    options.pop("features", None)
    return model, options, bundle


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_gives_what_torch_gives(made: Any, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed: pip install 'tocom[openvino]'")
    model, options, bundle = made
    assert bundle.manifest["outputs"][-1] == {"name": "patch_features", "shape": ["batch", 25, 64]}
    with Runtime.open(bundle.path, backend, threads=1) as runtime:
        for count in (1, 3):
            images = small_images(model, count, seed=count)
            for degree in DEGREES:
                got = runtime.infer(images.numpy(), degree=degree).outputs["patch_features"]
                with torch.inference_mode():
                    want = patch_features(compress(model, degree, **options), images).numpy()
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1.0, np.abs(want).max()))
                rows = [len({row.tobytes() for row in each}) for each in got]
                assert rows == [25] * count if degree == 0 else max(rows) < 25


def test_a_wrong_map_is_a_wrong_answer(made: Any) -> None:
    """The reference answers hold one sum per patch: patches changed places, or a row taken for another, are seen."""
    bundle = made[2]
    references = read_references(bundle)
    place = references.conclusive[3][0]
    outputs = references.split(references.answers[3][[place]])
    assert outputs["patch_features"].shape == (1, 25)
    assert references.compare_values(3, [place], references.answers[3][[place]]).is_right
    turned = references.answers[3][[place]].copy()
    turned[:, -25:] = turned[:, -25:][:, ::-1]
    assert not references.compare_values(3, [place], turned).is_right


def test_half_precision(tmp_path: Path) -> None:
    """The export compares the file with torch, op by op in half arithmetic too, or raises."""
    model = small_vit("vit_small_patch16_rope_224", depth=1)
    bundle = export(model, tmp_path / "bundle", degrees=(2,), precision="fp16", patch_features=True)
    assert bundle.manifest["degrees"][0]["check"]["images"] > 0


def test_bundles_without_them_have_the_ops_of_always(tmp_path: Path) -> None:
    model = small_vit()
    for patches, name in ((False, "TokenMerge"), (True, "TokenMergeMapped")):
        bundle = export(model, tmp_path / name, degrees=(3,), patch_features=patches, check=False)
        proto = onnx.load(bundle.onnx_path(3), load_external_data=False)
        assert {node.op_type for node in proto.graph.node if node.domain == "tocom"} == {name}
        assert [function.name for function in proto.functions] == [name]
        assert any(node.op_type == "GatherND" for node in proto.graph.node) == patches


@pytest.mark.fault("a bundle of patch features with pruning and no fused token", outcome="DegreeError; nothing written")
def test_pruning_without_fusing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DegreeError, match=r"nothing in their place\. Fuse the removed ones") as caught:
        export(small_vit(), tmp_path / "bundle", degrees=(0, 3), method="prune", patch_features=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_manifest_with_another_rank_is_refused(made: Any) -> None:
    from tocom.formats.manifest import check_manifest

    manifest = {**made[2].manifest, "outputs": [{"name": "patch_features", "shape": ["batch", 25]}]}
    with pytest.raises(BundleError, match=r"shape must be \[batch, patches, channels\]"):
        check_manifest(made[2].path, manifest)
