"""Sidecars of engines that no TensorRT built, as ``tocom build`` writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tocom.formats.build_options import BuildOptions
from tocom.formats.sidecar import EngineTensor, OnnxFiles, Sidecar, StoredEngine

__all__ = ["sidecar_json"]


def sidecar_json(bundle: Path, degree: int, engine: Path, content_bytes: int, changes: Mapping[str, Any]) -> str:
    """Return the sidecar of an engine's file as JSON; ``changes`` replace members, and those of ``options``."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    files, batch = manifest["files"], manifest["batch"]
    onnx = f"degree-{degree:02d}.onnx"
    stored = engine.read_bytes()
    content = Sidecar(
        created_by="tests",
        model="small",
        degree=degree,
        precision="fp32",
        token_counts=(9, 9),
        backend="tensorrt",
        backend_version="10.13.2",
        gpu="Scripted GPU",
        compute_capabilities=("8.7",),
        options=BuildOptions(batch=tuple(batch[name] for name in ("min", "opt", "max"))),
        op_plugin=None,
        onnx=OnnxFiles(onnx, files[onnx]["sha256"], files["weights.bin"]["sha256"], "0" * 64),
        engine=StoredEngine(engine.name, hashlib.sha256(stored).hexdigest(), len(stored), content_bytes, None),
        inputs=(EngineTensor("images", "float", (-1, 3, 8, 8)),),
        outputs=(EngineTensor("logits", "float", (-1, 3)),),
        layers=3,
        op_plugin_layers=0,
        tensors_dynamic_beyond_batch=0,
        build_seconds=0.1,
    ).to_json()
    return json.dumps({**content, **changes, "options": {**content["options"], **changes.get("options", {})}})
