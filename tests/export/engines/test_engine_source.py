"""Reading ONNX files without the onnx package."""

from __future__ import annotations

import onnx
import pytest
from tiny_engine_models import DEPTH

from tocom.errors import EngineError
from tocom.export.engines.source import read_source
from tocom.formats.onnx.summary import content_sha256


def rewrite(path, change):
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def test_nodes_are_counted(bundle):
    assert [read_source(bundle.onnx_path(degree)).op_nodes for degree in (0, 2, 4)] == [0, DEPTH, DEPTH]


def test_the_content_does_not_depend_on_where_the_weights_stand(bundle):
    path = bundle.onnx_path(2)
    before = content_sha256(path)
    weights = path.parent / "weights.bin"
    weights.write_bytes(bytes(4096) + weights.read_bytes())

    def shift(model):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = str(int(entry.value) + 4096)

    rewrite(path, shift)
    assert content_sha256(path) == before
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    changed = {content_sha256(bundle.onnx_path(degree)) for degree in (0, 2, 4)}
    assert before in changed or len(changed) == 3


def test_every_change_of_the_graph_or_of_a_weight_changes_the_content(bundle):
    path = bundle.onnx_path(2)
    seen = {content_sha256(path)}
    rewrite(path, lambda model: model.graph.node[0].output.__setitem__(0, "renamed"))
    seen.add(content_sha256(path))
    external = next(t for t in onnx.load(path, load_external_data=False).graph.initializer if t.external_data)
    offset = next(int(entry.value) for entry in external.external_data if entry.key == "offset")
    weights = path.parent / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[offset] ^= 1
    weights.write_bytes(content)
    seen.add(content_sha256(path))
    assert len(seen) == 3


def test_another_version_of_the_ops(bundle):
    path = bundle.onnx_path(2)

    def newer(model):
        for opset in model.opset_import:
            if opset.domain == "tocom":
                opset.version = 2

    rewrite(path, newer)
    with pytest.raises(
        EngineError, match=r"uses version 2 of the ops of domain 'tocom'; this tocom builds .* version 1"
    ):
        read_source(path)


def test_an_op_that_is_not_known(bundle):
    path = bundle.onnx_path(2)

    def rename(model):
        next(node for node in model.graph.node if node.domain == "tocom").op_type = "TokenSwap"

    rewrite(path, rename)
    with pytest.raises(EngineError, match=r"uses the ops TokenSwap of domain 'tocom'"):
        read_source(path)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x3a\xff\xff\x01", b"\xff" * 40, b"\x08\x0a"])
def test_files_that_are_no_model(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"is not an ONNX model"):
        read_source(path)


def test_a_file_that_is_cut_off(bundle):
    path = bundle.onnx_path(4)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EngineError, match="cut off"):
        read_source(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(EngineError, match="cannot be read"):
        read_source(tmp_path / "missing.onnx")
