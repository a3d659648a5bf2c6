"""A Triton model repository of ONNX files: Triton's own protobuf reads it, and ONNX Runtime runs it from its place."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
from exported import Exported
from small_bundles import images_of, write_small_bundle
from small_vits import small_vit

from tocom.errors import BundleError, EngineError, OutputError, RequestError
from tocom.export import export
from tocom.export.triton.repository import write_triton_repository
from tocom.formats.bundle import Bundle

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the extra tocom[triton]")
text_format = pytest.importorskip("google.protobuf.text_format")

TYPES = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16"}


def config_of(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config.ModelConfig())


def check_config(folder, bundle, degree):
    """Compare the configuration with what ONNX Runtime says of the file beside it; return both."""
    config = config_of(folder)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    assert config.name == folder.name
    assert config.backend == "onnxruntime"
    for told, has in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in told] == [tensor.name for tensor in has]
        for mine, theirs in zip(told, has, strict=True):
            assert model_config.DataType.Name(mine.data_type) == TYPES[theirs.type]
            # ONNX Runtime gives a free dimension's name; Triton takes the batch for itself where it is free.
            free = isinstance(theirs.shape[0], str)
            assert config.max_batch_size == (bundle.batch[2] if free else 0)
            assert list(mine.dims) == theirs.shape[1 if free else 0 :]
    assert not config.HasField("dynamic_batching")
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 0)]  # KIND_AUTO
    assert json.loads(config.parameters["token_counts"].string_value) == list(bundle.degrees[degree].token_counts)
    warmup = config.model_warmup[0]
    assert warmup.batch_size == max(config.max_batch_size, 1)
    assert warmup.inputs["images"].zero_data
    assert list(warmup.inputs["images"].dims) == list(config.input[0].dims)
    return config, session


def test_every_model_is_what_its_configuration_says_and_answers_as_the_bundle_does(plain: Exported, tmp_path):
    bundle = plain.bundle
    written = write_triton_repository(bundle, tmp_path / "repository", name="vit")
    names = [f"vit-r{degree:02d}" for degree in bundle.degrees]
    assert [model.name for model in written.models.values()] == names
    assert sorted(path.name for path in written.path.iterdir() if path.is_dir()) == names
    images = np.random.default_rng(0).standard_normal((bundle.batch[0], *bundle.image_shape), np.float32)
    for degree in bundle.degrees:
        _, session = check_config(written.path / f"vit-r{degree:02d}", bundle, degree)
        expected = onnxruntime.InferenceSession(bundle.onnx_path(degree)).run(None, {"images": images})
        for mine, theirs in zip(session.run(None, {"images": images}), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_two_outputs_in_float16_and_a_fixed_batch(tmp_path):
    bundle = export(
        small_vit(depth=1, num_classes=3),
        tmp_path / "bundle",
        degrees=[4],
        batch=2,
        precision="fp16",
        features=True,
        labels=["bolt", "nut", "wing\tnut"],
        check=False,
    )
    written = write_triton_repository(bundle, tmp_path / "repository")
    folder = written.path / "vit_tiny_patch16_224-r04"
    config = config_of(folder)
    assert config.max_batch_size == 0
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("logits", [2, 3]), ("features", [2, 64])]
    assert [tensor.label_filename for tensor in config.output] == ["labels.txt", ""]
    assert (folder / "labels.txt").read_text(encoding="utf-8") == "bolt\nnut\nwing nut\n"
    check_config(folder, bundle, 4)


@pytest.fixture
def small(tmp_path):
    return write_small_bundle(tmp_path / "bundle")


def test_it_stands_alone_with_the_weights_once_on_the_disk(small, tmp_path):
    repository = tmp_path / "repository"
    write_triton_repository(small.path, repository, name="vit")
    weights = [path.stat() for path in sorted(repository.glob("*/1/weights.bin"))]
    assert len({status.st_ino for status in weights}) == 1
    assert weights[0].st_nlink == len(weights) == 3
    shutil.rmtree(small.path)
    moved = repository.rename(tmp_path / "moved")
    session = onnxruntime.InferenceSession(moved / "vit-r04" / "1" / "model.onnx")
    images = images_of(3)
    np.testing.assert_allclose(session.run(None, {"images": images})[0], small.reference(images, 4), atol=1e-4)


def test_without_links_the_weights_are_copied(small, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr("tocom.export.triton.repository.os.link", refuse)
    written = write_triton_repository(small.path, tmp_path / "repository", name="vit")
    for path in written.path.glob("*/1/weights.bin"):
        assert path.read_bytes() == (small.path / "weights.bin").read_bytes()
        assert path.stat().st_nlink == 1


def test_a_part_of_the_degrees_under_a_name_of_ones_own(small, tmp_path):
    written = write_triton_repository(small.path, tmp_path / "repository", degrees=[8, 0, 8], name="a.b_c-1")
    assert [content["name"] for content in written.to_json()["models"]] == ["a.b_c-1-r00", "a.b_c-1-r08"]


def test_a_folder_in_the_way_is_kept(small, tmp_path):
    out = tmp_path / "repository"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        write_triton_repository(small.path, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    write_triton_repository(small.path, out, overwrite=True)
    assert not (out / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorrt-rtx"}, RequestError, r"'backend' parameter must be .*Got 'tensorrt-rtx'"),
        ({"backend": "tensorrt"}, EngineError, r"has no engines of TensorRT. Build them: tocom build"),
        ({"backend": "onnxruntime", "engines": "x"}, RequestError, r"'engines' parameter is of the backend tensorrt"),
        ({"engines": "x"}, EngineError, r"x has no engines"),
        ({"name": "../up"}, RequestError, r"'name' parameter must be .*Got '../up'"),
        ({"degrees": [0, 5]}, BundleError, r"has no degree 5. It has: 0, 4, 8"),
    ],
)
def test_what_it_cannot_do_is_said_and_nothing_is_written(small, tmp_path, options, error, message):
    out = tmp_path / "repository"
    with pytest.raises(error, match=message):
        write_triton_repository(small.path, out, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_it_never_replaces_the_bundle_it_reads(small):
    for out in (small.path, small.path.parent):
        with pytest.raises(RequestError, match="would replace the bundle"):
            write_triton_repository(small.path, out, overwrite=True)
    Bundle(small.path)


def test_a_damaged_bundle_is_refused(small, tmp_path):
    weights = small.path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"weights.bin has sha256"):
        write_triton_repository(small.path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
