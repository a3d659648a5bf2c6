"""Engines in a Triton model repository. TensorRT-RTX's stand for TensorRT's: equal sidecars, and the same op plugin."""

from __future__ import annotations

import json
import shutil

import pytest

from tocom.errors import BundleError, EngineError
from tocom.export.engines.builder import build
from tocom.export.triton.repository import write_triton_repository
from tocom.formats.bundle import Bundle
from tocom.formats.engine import SELF_REGISTER, unpack_engine
from tocom.formats.signatures import load_public_keys, new_key, sign

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the extra tocom[triton]")
text_format = pytest.importorskip("google.protobuf.text_format")

FOLDER = "tensorrt-10.14.1-some-gpu-sm89"
pytestmark = pytest.mark.usefixtures("rtx", "no_gpu")


@pytest.fixture(scope="module")
def built(exported, op_plugin, tmp_path_factory):
    """A bundle with compact engines that say of themselves that TensorRT built them."""
    path = shutil.copytree(exported, tmp_path_factory.mktemp("triton") / "bundle")
    made = build(path, backend="tensorrt-rtx", op_plugin=op_plugin.path)
    shutil.copytree(made.folder, path / "engines" / FOLDER)
    for sidecar in (path / "engines" / FOLDER).glob("degree-*.json"):
        change(sidecar, backend="tensorrt", backend_version="10.14.1")
    return path


@pytest.fixture
def bundle(built, tmp_path):
    return shutil.copytree(built, tmp_path / "bundle")


OTHER_ONNX = {"file": "x", "sha256": "0" * 64, "weights_sha256": "0" * 64, "content_sha256": "0" * 64}


def change(sidecar, **values):
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **values}))


def test_engines_are_unpacked_and_described_as_tensorrt_described_them(bundle, tmp_path):
    written = write_triton_repository(bundle, tmp_path / "repository", name="vit")
    assert list(written.models) == [0, 2, 4]
    for degree in written.models:
        record = json.loads((bundle / "engines" / FOLDER / f"degree-{degree:02d}.json").read_text())
        place = written.path / f"vit-r{degree:02d}"
        packed = bundle / "engines" / FOLDER / record["engine"]["file"]
        plain = unpack_engine(packed.read_bytes(), record["engine"]["content_bytes"], packed)
        assert (place / "1" / "model.plan").read_bytes() == plain
        config = text_format.Parse((place / "config.pbtxt").read_text(), model_config.ModelConfig())
        assert config.backend == "tensorrt"
        assert config.max_batch_size == record["options"]["batch"][2] == 4
        assert config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU
        for told, has in ((config.input, record["inputs"]), (config.output, record["outputs"])):
            assert [(t.name, [-1, *t.dims]) for t in told] == [(t["name"], t["shape"]) for t in has]
            assert {t.data_type for t in told} == {model_config.TYPE_FP32}
        assert sorted(path.name for path in place.rglob("*") if path.is_file()) == ["config.pbtxt", "model.plan"]


def test_the_op_plugin_library_lies_at_the_root_and_the_readme_says_how_to_load_it(bundle, op_plugin, tmp_path):
    written = write_triton_repository(bundle, tmp_path / "repository")
    assert written.op_plugin is not None
    assert (written.path / written.op_plugin).read_bytes() == op_plugin.path.read_bytes()
    text = (written.path / "README.md").read_text(encoding="utf-8")
    assert f"{SELF_REGISTER}=1 tritonserver" in text
    assert f"--backend-config=tensorrt,plugins=/models/{written.op_plugin}" in text
    assert "built by TensorRT 10.14.1 for portable" in text
    # The dense degree alone needs none.
    dense = write_triton_repository(bundle, tmp_path / "dense", degrees=[0])
    assert dense.op_plugin is None
    assert SELF_REGISTER not in (dense.path / "README.md").read_text(encoding="utf-8")


def test_the_onnx_files_are_served_where_asked_for(bundle, tmp_path):
    written = write_triton_repository(bundle, tmp_path / "repository", backend="onnxruntime")
    assert {model.backend for model in written.models.values()} == {"onnxruntime"}


def test_engines_of_tensorrt_rtx_are_refused(bundle, tmp_path):
    (folder,) = (bundle / "engines").glob("tensorrt-rtx-*")
    with pytest.raises(EngineError, match=r"holds engines of tensorrt-rtx; Triton loads engines of TensorRT alone"):
        write_triton_repository(bundle, tmp_path / "repository", engines=folder)
    # Unasked, a bundle that has no others is served by ONNX Runtime.
    shutil.rmtree(bundle / "engines" / FOLDER)
    written = write_triton_repository(bundle, tmp_path / "repository")
    assert {model.backend for model in written.models.values()} == {"onnxruntime"}


def test_several_devices_want_a_choice(bundle, tmp_path):
    other = shutil.copytree(bundle / "engines" / FOLDER, bundle / "engines" / "tensorrt-10.3.0-orin-sm87")
    with pytest.raises(EngineError, match=r"engines for 2 devices: .*sm89, .*orin-sm87. Name .*--engines FOLDER"):
        write_triton_repository(bundle, tmp_path / "repository")
    assert list(write_triton_repository(bundle, tmp_path / "repository", engines=other).models) == [0, 2, 4]


def _changed_engine(folder):
    engine = folder / "degree-04.engine.zip"
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")


def _changed_library(folder):
    library = next(folder.glob("*.so"))
    library.write_bytes(library.read_bytes() + b"x")


def _another_library(folder):
    shutil.copy(next(folder.glob("*.so")), folder / "libother.so")
    record = json.loads((folder / "degree-04.json").read_text())
    change(folder / "degree-04.json", op_plugin={**record["op_plugin"], "file": "libother.so"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed_engine, r"degree-04.engine.zip has .* expected is .* it was cut off or changed"),
        (lambda folder: (folder / "degree-04.engine.zip").unlink(), r"degree-04.engine.zip cannot be read"),
        (_changed_library, r"libtocom_op_plugin.*so has .* was cut off or changed"),
        (_another_library, r"need different op plugin libraries \(.*Build all degrees again"),
        (lambda folder: (folder / "degree-04.json").unlink(), r"has no engine of degree 4. Build it, or .* 0, 2"),
        (lambda folder: (folder / "degree-04.json").write_text("{"), r"degree-04.json is not a readable sidecar"),
        (
            lambda folder: (folder / "degree-04.json").write_text("[]"),
            r"degree-04.json is not a readable sidecar .*version 'None'",
        ),
        (
            lambda folder: change(folder / "degree-04.json", options=[]),
            r"degree-04.json is not .*'options' must be an object",
        ),
        (
            lambda folder: change(folder / "degree-04.json", onnx=OTHER_ONNX),
            r"degree-04.json is of an engine of another bundle",
        ),
        (lambda folder: change(folder / "degree-04.json", degree=5), r"degree-04.json is of an engine of another"),
        (
            lambda folder: change(
                folder / "degree-04.json", inputs=[{"name": "images", "dtype": "fp8", "shape": [-1, 3, 32, 32]}]
            ),
            r"has images of type 'fp8', which Triton does not know",
        ),
    ],
)
def test_engines_that_are_not_what_they_say(bundle, tmp_path, damage, message):
    damage(bundle / "engines" / FOLDER)
    with pytest.raises(EngineError, match=message) as caught:
        write_triton_repository(bundle, tmp_path / "repository", degrees=[0, 2, 4])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "repository").exists()


def test_with_trusted_keys_the_sidecars_must_be_signed(bundle, tmp_path):
    pytest.importorskip("cryptography")
    new_key(tmp_path / "key")
    keys = load_public_keys([tmp_path / "key.pub"])
    sign(bundle, tmp_path / "key")
    write_triton_repository(Bundle(bundle, trusted_keys=keys), tmp_path / "repository")
    change(bundle / "engines" / FOLDER / "degree-04.json", build_seconds=0)
    with pytest.raises(BundleError, match=r"no trusted key signed engines/.*degree-04.json"):
        write_triton_repository(Bundle(bundle, trusted_keys=keys), tmp_path / "other")
