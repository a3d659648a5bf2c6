"""Models handed over in Python: unwrapped, converted from other libraries, or refused with what to do."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from tocom.compensator.compensator import model_name
from tocom.compression.attention import layers
from tocom.compression.loading.files import Opened
from tocom.compression.loading.fit import check_finite
from tocom.compression.loading.model import LoadedModel, load_opened
from tocom.compression.surgery import MODELS, check_supported
from tocom.errors import ModelError

__all__ = ["from_memory"]

# DataParallel and DistributedDataParallel; torch.compile; averaged copies of torch.optim.swa_utils and timm.utils.
_INNER = ("module", "_orig_mod")


def from_memory(model: nn.Module | LoadedModel) -> LoadedModel:
    """Return a model as :func:`load_model` would have returned it; what was given is left as it is.

    Args:
        model: A timm Vision Transformer; one in DataParallel, DistributedDataParallel, ``torch.compile`` or an
            averaged copy; in half precision; or a Vision Transformer of torchvision or transformers.

    Raises:
        ModelError: It is none of these, has other modules in the place of its projections, or holds NaN.
    """
    if isinstance(model, LoadedModel):
        check_supported(model.model)
        return model
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"The 'model' parameter must be a torch module, or what load_model returned. Got a {type(model).__name__}."
        )
    model = _unwrapped(model)
    library = type(model).__module__.partition(".")[0]
    if not isinstance(model, MODELS) and library in ("torchvision", "transformers"):
        return _converted(model, library)
    check_supported(model)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes - {torch.float32, torch.float16, torch.bfloat16}:
        raise ModelError(
            f"The model's parameters are {', '.join(sorted(map(str, dtypes)))}. Give it in float32; export's "
            "'precision' makes fp16 and bf16, tocom quantize int8."
        )
    if dtypes != {torch.float32} or next(model.parameters()).device.type != "cpu":
        # Half is exact in float32; export casts once, at the end. A copy, for this one is the caller's.
        model = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    check_finite(model.state_dict(), "in memory")
    hooked = [
        name
        for block in model.blocks
        for name, each in layers(block.attn).items()
        if each._forward_hooks or each._forward_pre_hooks
    ]
    if hooked:
        raise ModelError(
            f"The model has hooks on attn.{hooked[0]}, which no engine would run. Remove them before export()."
        )
    return LoadedModel(model, model_name(model), "memory")


def _unwrapped(model: nn.Module) -> nn.Module:
    for _ in range(8):
        if isinstance(model, MODELS):
            break
        inner = next((each for name in _INNER if isinstance(each := getattr(model, name, None), nn.Module)), None)
        if inner is None:
            break
        model = inner
    else:
        raise ModelError("The 'model' parameter is wrapped more than 8 times. Give the model itself.")
    if hasattr(model, "merge_and_unload"):
        raise ModelError("The model is in peft, its adapters not merged. Give export() model.merge_and_unload().")
    if not isinstance(model, MODELS):
        names = [name for name, each in model.named_modules() if isinstance(each, MODELS) and name]
        if names:
            raise ModelError(
                f"{type(model).__name__} is not a Vision Transformer, but holds one at {names[0]!r}. Give export() "
                "that part, if the rest does nothing after it."
            )
    return model


def _converted(model: nn.Module, library: str) -> LoadedModel:
    if library == "torchvision":
        layers = getattr(getattr(model, "encoder", None), "layers", None)
        heads = layers[0].self_attention.num_heads if layers is not None and len(layers) else None
        config = {"num_attention_heads": heads}
    else:
        config = model.config.to_dict() if hasattr(model, "config") else {}
    name = f"the {type(model).__name__} in memory"
    state = {key: value.detach().cpu().float() for key, value in model.state_dict().items()}
    return load_opened(Opened(Path(name), state, sidecars={"config.json": config}), None, kind="memory")
