"""What comes behind an export of patch features: the runtime, INT8, Triton, Polygraphy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from small_vits import busy_compensator, small_images, small_vit

from tocom.calibration.agreement.polygraphy import write_polygraphy
from tocom.calibration.int8.quantizer import quantize
from tocom.errors import RequestError
from tocom.export import export
from tocom.export.triton.repository import write_triton_repository
from tocom.formats.bundle import Bundle
from tocom.formats.references import read_references
from tocom.runtime import Runtime

DEGREE = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model, out = small_vit(depth=2, num_classes=3), tmp_path_factory.mktemp("onward") / "bundle"
    return export(
        model, out, degrees=(0, DEGREE), batch=(1, 2, 3), compensator=busy_compensator(model), patch_features=True
    )


def images_for(count: int) -> np.ndarray:
    return small_images(small_vit(), count).numpy()


@pytest.mark.fault("a batch beyond the range of a bundle with patch features", outcome="RequestError; one line")
def test_a_batch_beyond_the_range_is_refused(bundle: Bundle) -> None:
    with Runtime.open(bundle.path, "onnxruntime", degrees=[DEGREE], threads=1) as runtime:
        assert runtime.infer(images_for(3), degree=DEGREE).outputs["patch_features"].shape == (3, 25, 64)
        with pytest.raises(RequestError, match=r"a batch of 1…3 \(the bundle's range\)\. Got 4") as caught:
            runtime.infer(images_for(4), degree=DEGREE)
    assert "\n" not in str(caught.value)


def test_int8_gives_them_near_those_of_the_float_bundle(bundle: Bundle, tmp_path: Path) -> None:
    samples = [(image, index % 3) for index, image in enumerate(images_for(24))]
    made = quantize(bundle, tmp_path / "int8", samples, floor_points=100, range_images=12)
    assert made.manifest["outputs"] == bundle.manifest["outputs"]
    references = read_references(made)
    assert references.split(references.answers[DEGREE])["patch_features"].shape[1] == 25
    found = []
    for each in (bundle, made):
        with Runtime.open(each.path, "onnxruntime", degrees=[0], threads=1) as runtime:
            found.append(runtime.infer(images_for(2), degree=0).outputs["patch_features"])
    cosines = (found[0] * found[1]).sum(-1) / np.prod([np.linalg.norm(each, axis=-1) for each in found], axis=0)
    assert 0.95 < cosines.min() < 1 - 1e-6


def test_triton_serves_them_with_their_dimensions(bundle: Bundle, tmp_path: Path) -> None:
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the extra tocom[triton]")
    text_format = pytest.importorskip("google.protobuf.text_format")
    folder = write_triton_repository(bundle, tmp_path / "repository", name="vit").path / f"vit-r{DEGREE:02d}"
    config = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config.ModelConfig())
    assert {output.name: list(output.dims) for output in config.output} == {"logits": [3], "patch_features": [25, 64]}
    runs = [
        onnxruntime.InferenceSession(file).run(None, {"images": images_for(2)})[1]
        for file in (folder / "1" / "model.onnx", bundle.onnx_path(DEGREE))
    ]
    np.testing.assert_array_equal(*runs)


def test_polygraphy_compares_the_other_outputs(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    write_polygraphy(bundle, tmp_path)
    files = [part for kind in ("inputs", "outputs") for part in (f"--load-{kind}", f"{kind}-{DEGREE:02d}.json")]
    program = "import sys; from polygraphy.tools import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", str(bundle.onnx_path(DEGREE)), "--onnxrt", *files]
    done = subprocess.run([*command, "--atol", "1e-3"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'logits'" in done.stdout
