"""Models handed to ``export`` in Python: unwrapped, converted, or refused before any file is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_vits import small_images, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom import compress
from tocom.compression.loading.memory import from_memory
from tocom.compression.loading.model import LoadedModel
from tocom.errors import ModelError
from tocom.export import export


class Adapter(nn.Module):
    """A module of one's own in the place of a projection."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias, self.more = inner.weight, inner.bias, nn.Linear(inner.in_features, inner.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias) + self.more(x)


class Own(nn.Module):
    """A network of one's own around a Vision Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_vit()


def one_channel() -> VisionTransformer:
    return small_vit(in_chans=1)


def adapted() -> VisionTransformer:
    model = small_vit()
    model.blocks[1].attn.qkv = Adapter(model.blocks[1].attn.qkv)
    return model


def parametrized() -> VisionTransformer:
    model = small_vit()
    nn.utils.parametrizations.weight_norm(model.blocks[0].attn.qkv)
    return model


def hooked() -> VisionTransformer:
    model = small_vit()
    model.blocks[0].attn.qkv.register_forward_hook(lambda module, args, output: output * 2)
    return model


def diverged() -> VisionTransformer:
    model = small_vit()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in DataParallel": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(wrapper: str) -> None:
    model = small_vit()
    loaded = from_memory(WRAPPERS[wrapper](model))
    images = small_images(model)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), model(images))
    assert (loaded.name, loaded.weights) == ("vit_tiny_patch16_224", "memory")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_becomes_float32_and_the_callers_stays(dtype: torch.dtype) -> None:
    model = small_vit().to(dtype)
    loaded = from_memory(model)
    assert next(model.parameters()).dtype == dtype
    assert next(loaded.model.parameters()).dtype == torch.float32
    with torch.inference_mode():
        want = small_vit().to(dtype).float()(small_images(model))
        assert torch.equal(loaded.model(small_images(model)), want)


def test_torchvisions_is_converted() -> None:
    from torchvision.models import VisionTransformer as TorchvisionViT

    torch.manual_seed(0)
    model = TorchvisionViT(64, 16, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=96, num_classes=3).eval()
    nn.init.normal_(model.heads.head.weight)
    loaded, images = from_memory(model), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=1e-5)
    assert loaded.input_entry["mean"] == [0.485, 0.456, 0.406]
    assert loaded.origins["mean"] == "torchvision's usual"


REFUSED = {
    "one channel": (one_channel, "takes 1 channels, but its mean has 3 values"),
    "a module on a projection": (adapted, "attn.qkv of block 1 is a Adapter of .*merge_and_unload"),
    "a parametrization": (parametrized, "attn.qkv of block 0 is a ParametrizedLinear of torch"),
    "a hook": (hooked, "hooks on attn.qkv.*Remove them"),
    "NaN": (diverged, "NaN or infinity in norm.weight"),
    "a network around it": (Own, "holds one at 'backbone'. Give export"),
    "no model": (dict, "must be a torch module.* Got a dict"),
    "double": (lambda: small_vit().double(), "parameters are torch.float64. Give it in float32"),
    "a convolutional network": (lambda: nn.Sequential(nn.Conv2d(3, 3, 3)), "Sequential is not supported"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.fault(
    "a module handed to export() that no engine can be made of", outcome="ModelError; no file is written"
)
def test_what_cannot_be_exported_is_refused_first(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message) as caught:
        export(make(), tmp_path / "bundle", degrees=[0, 2], check=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_compress_refuses_a_module_on_a_projection() -> None:
    with pytest.raises(ModelError, match=r"attn\.qkv of block 1 is a Adapter"):
        compress(adapted(), 2)


def test_a_loaded_model_carries_its_input_and_labels() -> None:
    model = one_channel()
    entry = {
        "name": "images", "dtype": "float32", "shape": ["batch", 1, 80, 80], "mean": [0.1], "std": [0.3],
        "interpolation": "bilinear", "crop": 0.5, "crop_mode": "border",
    }  # fmt: skip
    labels = [str(index) for index in range(10)]
    loaded = LoadedModel(model, "mine", "memory", labels, entry)
    assert from_memory(loaded) is loaded
    with pytest.raises(ModelError, match="has 10 classes, but there are 9 labels"):
        LoadedModel(model, "mine", "memory", labels[1:], entry)
