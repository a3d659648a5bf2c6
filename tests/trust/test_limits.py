"""Hostile numbers and places: refused before a parser, an allocation or another file is reached."""

from __future__ import annotations

import ast
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto
from safetensors.torch import save_file

from tocom import Compensator
from tocom.errors import BundleError, CompensatorError
from tocom.formats.bundle import Bundle
from tocom.formats.onnx.tensors import external_data
from tocom.formats.sealed_json import parse_json, write_sealed_json

GOLDEN = Path(__file__).parent / "golden" / "version-1"


def outside(location: str = "/etc/passwd", offset: int | str = 0, length: int | str = 4, size: int = 1) -> TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[size], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def in_attribute(tensor: TensorProto) -> NodeProto:
    return NodeProto(op_type="Constant", attribute=[AttributeProto(name="value", t=tensor)])


PLACES: dict[str, Callable[[TensorProto], ModelProto]] = {
    "initializer": lambda t: ModelProto(graph=GraphProto(initializer=[t])),
    "sparse initializer": lambda t: ModelProto(graph=GraphProto(sparse_initializer=[SparseTensorProto(values=t)])),
    "attribute": lambda t: ModelProto(graph=GraphProto(node=[in_attribute(t)])),
    "attribute list": lambda t: ModelProto(
        graph=GraphProto(node=[NodeProto(attribute=[AttributeProto(name="a", tensors=[t])])])
    ),
    "subgraph": lambda t: ModelProto(
        graph=GraphProto(node=[NodeProto(attribute=[AttributeProto(name="g", g=GraphProto(initializer=[t]))])])
    ),
    "function": lambda t: ModelProto(functions=[FunctionProto(name="f", node=[in_attribute(t)])]),
}


def rewritten(tmp_path: Path, change: Callable[[ModelProto], object]) -> Bundle:
    """Return a bundle whose dense ONNX file was changed, and whose manifest says so: all hashes are right."""
    folder = shutil.copytree(GOLDEN, tmp_path / "bundle")
    model = onnx.load(folder / "degree-00.onnx", load_external_data=False)
    change(model)
    content = model.SerializeToString()
    (folder / "degree-00.onnx").write_bytes(content)
    manifest = parse_json((folder / "bundle.json").read_bytes())
    manifest["files"]["degree-00.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    write_sealed_json(folder / "bundle.json", manifest)
    return Bundle(folder)


@pytest.mark.fault(
    "an ONNX file that takes weights from elsewhere, all hashes right",
    outcome="BundleError that names the file, before anything parses it",
)
@pytest.mark.parametrize("place", PLACES)
def test_weights_from_other_files_are_refused_wherever_they_are_asked_for(place: str, tmp_path: Path) -> None:
    bundle = rewritten(tmp_path, lambda model: model.MergeFrom(PLACES[place](outside())))
    with pytest.raises(BundleError, match=r"degree-00\.onnx takes weights from '/etc/passwd', which the manifest"):
        bundle.read_onnx(0)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (outside("../bundle/weights.bin"), "does not name"),
        (outside("*/_ORT_MEM_ADDR_/*"), "does not name"),
        (outside(""), "does not name"),
        (outside("weights.bin", offset=1 << 40), "takes 4 bytes at 1099511627776 from weights.bin, which has 26624"),
        (outside("weights.bin", length=1 << 40), "from weights.bin, which has 26624"),
        (outside("weights.bin", size=1 << 40), "for a tensor of 4398046511104 bytes"),
        (outside("weights.bin", offset=-4), "lies at -4"),
        (outside("weights.bin", offset="x"), "is not an ONNX file"),
        (
            TensorProto(data_type=8, dims=[1], external_data=outside("weights.bin").external_data),
            "of type 8 cannot lie",
        ),
        (TensorProto(data_type=1, dims=[1] * 65, external_data=outside().external_data), "more than 64 dimensions"),
        (TensorProto(external_data=[*outside().external_data, *outside().external_data]), "names its location twice"),
    ],
)
def test_places_that_are_none(tensor: TensorProto, message: str, tmp_path: Path) -> None:
    bundle = rewritten(tmp_path, lambda model: model.graph.initializer.append(tensor))
    with pytest.raises(BundleError, match=message) as caught:
        bundle.read_onnx(0)
    assert "\n" not in str(caught.value)


def test_the_walk_finds_every_place_of_a_real_export() -> None:
    for path in GOLDEN.glob("*.onnx"):
        found = [(each.location, each.offset, each.length) for each in external_data(path.read_bytes())]
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
        assert found == [(e["location"], int(e["offset"]), int(e["length"])) for e in entries if e]
        assert found


def test_graphs_that_nest_too_deeply() -> None:
    graph = GraphProto(initializer=[outside()])
    for _ in range(20):
        graph = GraphProto(node=[NodeProto(attribute=[AttributeProto(name="g", g=graph)])])
    with pytest.raises(ValueError, match="nest more than 32 levels"):
        list(external_data(ModelProto(graph=graph).SerializeToString()))


@pytest.mark.fault(
    "a compensator that claims more than its file holds", outcome="CompensatorError; no memory is taken for it"
)
def test_a_compensator_cannot_ask_for_more_memory_than_its_file_has(tmp_path: Path) -> None:
    """One large tensor and very many empty ones: as many blocks, each as large as the first, if it were believed."""
    tensors = {f"blocks.{i}.attn.{name}": torch.zeros(0) for i in range(500) for name in ("q.down", "q.up", "v.down")}
    tensors |= {f"blocks.{i}.attn.v.up": torch.zeros(0) for i in range(500)}
    tensors["blocks.0.attn.q.down"] = torch.zeros(1, 1 << 20)
    tensors["blocks.0.attn.q.up"] = torch.zeros(1 << 20, 1)
    metadata = {
        "format": "tocom-compensator", "version": "1", "model": "m", "method": "merge", "family": "every",
        "groups": "1", "rank": "1", "scale": "0.1", "image_size": "1x1", "base_sha256": "0",
    }  # fmt: skip
    save_file(tensors, tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(CompensatorError, match="should have shape"):  # 8 GB, had they been made
        Compensator.load(tmp_path / "c.safetensors")
    many = {f"t{index}": torch.zeros(0) for index in range(4097)}
    save_file(many, tmp_path / "many.safetensors", metadata=metadata)
    with pytest.raises(CompensatorError, match="has 4097 tensors, the most is 4096"):
        Compensator.load(tmp_path / "many.safetensors")


def test_nothing_unpickles_or_evaluates() -> None:
    """Every call in the package that could run what a file says; torch.load only with ``weights_only=True``."""
    found = []
    root = Path(__file__).resolve().parents[2]
    folders = [root / name for name in ("tocom", "export", "runtime", "calibration")]
    for source in sorted(path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if name == "torch.load":
                found.append(source.name)
                assert options.get("weights_only") == "True", source
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load"), source
            assert options.get("allow_pickle") != "True", source
    assert sorted(found) == ["checkpoint.py", "files.py"]
