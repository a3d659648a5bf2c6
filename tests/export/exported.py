"""Small bundles of several kinds of models, exported once per run, with what the tests compare them to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from small_vits import busy_compensator, small_images, small_vit
from timm.models.vision_transformer import VisionTransformer

from tocom import Compensator, compress
from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import largest_degree
from tocom.export import export
from tocom.formats.bundle import Bundle

SOURCE = 2


@dataclass(frozen=True)
class Case:
    """A model and a way to compress it.

    Attributes:
        name: What is special about it.
        model: timm name.
        method: ``merge`` or ``prune``.
        fuse: With ``prune``.
        family: Which of the blocks remove tokens.
        options: For ``small_vit``.
        slow: Whether other cases hold all that this one shows but for their combination.
    """

    name: str
    model: str = "vit_tiny_patch16_224"
    method: str = "merge"
    fuse: bool = False
    family: str = "every"
    options: dict[str, Any] = field(default_factory=dict)
    slow: bool = False

    @property
    def compression(self) -> dict[str, Any]:
        """Keyword arguments of compress() and export()."""
        return {"method": self.method, "fuse": self.fuse, "family": self.family}

    def build(self) -> VisionTransformer:
        """Return the model."""
        return small_vit(self.model, **self.options)


CASES = (
    Case("class token"),
    Case("class token, prune", method="prune"),
    Case("class token, fuse", method="prune", fuse=True),
    Case("distillation token", "deit_tiny_distilled_patch16_224", options={"side": 96, "depth": 2}),
    Case("registers, layer scale", "vit_small_patch14_reg4_dinov2", options={"side": 70, "num_classes": 0}, slow=True),
    Case(
        "no class token, average, query and key norm",
        "vit_base_patch16_gap_224",
        options={"side": 96, "depth": 2, "qk_norm": True},
    ),
    Case(
        "no class token, attention pooling, prune",
        "vit_base_patch16_siglip_224",
        "prune",
        options={"depth": 2, "num_classes": 0},
    ),
    Case("one block merges", family="spaced:1", slow=True),
    Case("two blocks prune", method="prune", family="spaced:0,2"),
    Case("rotary, registers", "vit_small_patch16_dinov3", options={"depth": 2, "dynamic_img_size": False}),
    Case("rotary, q apart, fuse", "eva02_tiny_patch14_224", "prune", True, options={"side": 70, "depth": 2}),
    Case("rotary, mixed", "vit_small_patch16_rope_mixed_224", options={"num_classes": 0}, slow=True),
    Case("gated MLP", "aimv2_large_patch14_224", options={"side": 70, "num_classes": 0}, slow=True),
)


@dataclass(frozen=True)
class Exported:
    """A bundle and the model that it is of."""

    case: Case
    model: VisionTransformer
    compensator: Compensator
    bundle: Bundle

    def expected(self, degree: int, images: np.ndarray) -> np.ndarray:
        """Return what torch computes at a degree, the compensator merged in."""
        reference = compress(
            self.model, degree, **self.case.compression, compensator=self.compensator, source_degree=SOURCE
        )
        with torch.inference_mode():
            return reference(torch.from_numpy(images)).numpy()

    def images(self, count: int, seed: int = 5) -> np.ndarray:
        """Return random images for the model."""
        return small_images(self.model, count, seed).numpy()

    def graph(self, degree: int) -> onnx.ModelProto:
        """Return a degree's ONNX file, weights left outside."""
        return onnx.load(self.bundle.onnx_path(degree), load_external_data=False)


def make(case: Case, out: Path) -> Exported:
    """Export a case at degrees 0, 2, 3 and the cap, symbolic batch, checked against torch by the export itself."""
    model = case.build()
    cap = largest_degree(input_tokens(model), len(model.blocks), model.num_prefix_tokens, case.family)
    compensator = busy_compensator(model, groups=cap, method=case.method, family=case.family)
    bundle = export(
        model,
        out,
        degrees=[cap, 0, 3, 2],
        compensator=compensator,
        source_degree=SOURCE,
        batch=(1, 2, 4),
        **case.compression,
    )
    return Exported(case, model, compensator, bundle)


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the output of an ONNX file under ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def places(proto: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return offset and length of every initializer that stands in the weights' file."""
    found = {}
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = int(entries["offset"]), int(entries["length"])
    return found
