"""Write the golden bundle of the installed tocom's schema version: ``python tests/trust/make_golden_bundle.py OUT``.

Run again and committed whenever the format changes: every later tocom must load it and answer what it answered then.
The model is timm's smallest shape: one block of 8 channels, 10 tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

from tocom import Compensator
from tocom.export import export


def main(out: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, depth=1, embed_dim=8, num_heads=1, num_classes=3, pretrained=False
    ).eval()
    compensator = Compensator.for_model(model, groups=4, rank=1)
    with torch.no_grad():
        for parameter in (*model.parameters(), *compensator.parameters()):
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    bundle = export(model, out, degrees=[0, 2], compensator=compensator, batch=(1, 1, 2), labels=["a", "b", "c"])
    images = np.random.default_rng(0).standard_normal((2, *bundle.image_shape)).astype(np.float32)
    expected = {}
    for degree in bundle.degrees:
        session = onnxruntime.InferenceSession(str(bundle.onnx_path(degree)), providers=["CPUExecutionProvider"])
        expected[str(degree)] = session.run(["logits"], {"images": images})[0].tolist()
    # Beside the bundle, not in it: it holds what the export wrote, byte for byte.
    out.with_suffix(".json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
