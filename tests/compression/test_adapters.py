"""Configurations of peft's adapters that somebody edited: one readable line, and a sum where they are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tocom.compression.loading.adapters import merge_adapter
from tocom.errors import ModelError

WEIGHTS = {"blocks.0.attn.qkv.weight": torch.zeros(6, 2)}


def adapter(folder: Path, config: Any) -> Path:
    name = "base_model.model.blocks.0.attn.qkv"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(6, 1)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_the_sum_is_scaled_by_alpha_over_rank(tmp_path: Path) -> None:
    merged = merge_adapter(WEIGHTS, adapter(tmp_path, {"peft_type": "LORA", "lora_alpha": 3}))
    assert torch.equal(merged["blocks.0.attn.qkv.weight"], torch.full((6, 2), 3.0))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "must hold an object"),
        ({"peft_type": "LORA", "lora_alpha": "three"}, "its alpha cannot be read"),
        ({"peft_type": "LORA", "alpha_pattern": {"(": 3}}, "its alpha cannot be read"),
        ({"peft_type": "LORA", "alpha_pattern": [3]}, "its alpha cannot be read"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(tmp_path: Path, config: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        merge_adapter(WEIGHTS, adapter(tmp_path, config))
