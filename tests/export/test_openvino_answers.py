"""Exported bundles under OpenVINO give the answers that ONNX Runtime gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Exported
from small_vits import small_images, small_vit

from tocom import compress
from tocom.export import export
from tocom.runtime import Runtime

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'tocom[openvino]'")


def test_openvino_equals_onnx_runtime_at_every_degree(exported: Exported) -> None:
    path, name = exported.bundle.path, exported.bundle.output_names[0]
    with (
        Runtime.open(path, "openvino", threads=1) as openvino,
        Runtime.open(path, "onnxruntime", threads=1) as onnxruntime,
    ):
        answers = {}
        for batch in (1, 4):
            images = exported.images(batch)
            for degree in exported.bundle.degrees:
                got, want = (each.infer(images, degree=degree).outputs for each in (openvino, onnxruntime))
                assert got.keys() == want.keys()
                for output, values in want.items():
                    bound = 1e-4 * max(1.0, np.abs(values).max())
                    np.testing.assert_allclose(got[output], values, rtol=0, atol=bound)
                answers[degree] = got[name]
    assert all(np.abs(answers[0] - answers[degree]).max() > 1e-2 for degree in answers if degree)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-2), ("bf16", 1e-1)])
def test_a_bundle_of_one_batch_size_and_half_precision_runs(tmp_path: Path, precision: str, bound: float) -> None:
    model = small_vit()
    bundle = export(model, tmp_path / "bundle", degrees=[3], precision=precision, check=False)
    images = small_images(model, 1)
    with Runtime.open(bundle.path, "openvino", threads=1) as runtime, torch.inference_mode():
        got = runtime.infer(images.numpy(), degree=3).outputs["logits"]
        want = compress(model, 3)(images).numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, np.abs(want).max()))
