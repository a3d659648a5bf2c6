"""Our preprocessing against timm's evaluation transform, bit for bit, for every pretrained config of timm's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models.vision_transformer import VisionTransformer

from tocom.compression.loading.preprocessing import Preprocessing, input_config
from tocom.compression.surgery import check_supported
from tocom.errors import ModelError, RequestError
from tocom.formats.manifest import CROP_MODES, INTERPOLATIONS
from tocom.images import preprocess
from tocom.system.dependencies import Requirement

# Where timm keeps the classes that can be compressed; the slow test below goes through all the others.
MODULES = ("vision_transformer", "deit")
# Landscape, portrait, square, of the model's own size, smaller, odd, thin: (width, height).
SHAPES = ((320, 240), (241, 333), (300, 300), (224, 224), (64, 48), (37, 51), (501, 97), (90, 611), (257, 256), (9, 8))


def pretrained_configs() -> dict[tuple[Any, ...], tuple[str, dict[str, Any]]]:
    """Return what timm's pretrained configs ask for: one name and data config of every distinct one."""
    configs = {}
    for name in [name for module in MODULES for name in timm.list_models(pretrained=True, module=module)]:
        config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        key = tuple(tuple(value) if isinstance(value, (tuple, list)) else value for value in config.values())
        configs.setdefault(key, (name, config))
    return configs


CONFIGS = pretrained_configs()


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def small(config: dict[str, Any], **options: Any) -> VisionTransformer:
    """Return a small model that timm says this of."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        **{
            "img_size": config["input_size"][1:],
            "patch_size": 1,
            "depth": 1,
            "embed_dim": 8,
            "num_heads": 1,
            **options,
        },
        pretrained_cfg_overlay=config,
        device="meta",
    )


def assert_same(entry: dict[str, Any], config: dict[str, Any]) -> None:
    transform = create_transform(**config)
    for shape in SHAPES:
        image = picture(*shape)
        np.testing.assert_array_equal(preprocess(image, entry), transform(image).numpy(), err_msg=str((shape, config)))


def test_timm_has_many_configs() -> None:
    assert len(CONFIGS) >= 30
    assert {config["crop_mode"] for _, config in CONFIGS.values()} >= {"center", "squash"}


@pytest.mark.parametrize("key", CONFIGS, ids=lambda key: "-".join(map(str, key[:4])))
def test_every_pretrained_config(key: tuple[Any, ...]) -> None:
    _, config = CONFIGS[key]
    assert_same(input_config(small(config)), config)


@pytest.mark.slow
def test_no_other_module_of_timm_has_a_supported_class() -> None:
    for name in timm.list_models():
        if any(name in timm.list_models(module=module) for module in MODULES):
            continue
        with torch.device("meta"):
            model = timm.create_model(name)
        with pytest.raises(ModelError):
            check_supported(model)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    target=st.sampled_from([(32, 32), (16, 48), (48, 16), (31, 33)]),
    crop=st.sampled_from([1.0, 0.9, 0.875, 0.95, 0.6]),
    interpolation=st.sampled_from(INTERPOLATIONS),
    mode=st.sampled_from(CROP_MODES),
)
def test_every_mode_interpolation_and_size(
    size: tuple[int, int], target: tuple[int, int], crop: float, interpolation: str, mode: str
) -> None:
    config = {
        "input_size": (3, *target), "crop_pct": crop, "interpolation": interpolation, "crop_mode": mode,
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    }  # fmt: skip
    # Before 1.0.31 timm left the interpolation out there: ours is what the config says.
    forgotten = mode == "center" and target[0] != target[1] and interpolation != "bilinear"
    assume(not forgotten or Requirement("timm>=1.0.31").met_by(timm.__version__))
    image = picture(*size)
    try:
        want = create_transform(**config)(image).numpy()
    except ValueError:  # timm's border mode makes nothing of an image so thin that a side rounds to none
        assert mode == "border"
        assert preprocess(image, input_config(small(config))).shape == (3, *target)
        return
    np.testing.assert_array_equal(preprocess(image, input_config(small(config))), want)


def test_one_channel_is_read_as_timm_reads_it() -> None:
    config = {
        "input_size": (1, 32, 32), "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "border",
        "mean": (0.13,), "std": (0.31,),
    }  # fmt: skip
    for shape in SHAPES:
        image = picture(*shape)
        want = create_transform(**config)(image.convert("L")).numpy()  # timm.data.ImageDataset with input_img_mode L
        np.testing.assert_array_equal(preprocess(image, input_config(small(config, in_chans=1))), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_pct": 1.1}, r"timm's config of the model: 'crop' must be at most 1\. Got 1\.1"),
        ({"crop_mode": "letterbox"}, "'crop_mode' must be one of center, squash, border. Got 'letterbox'"),
        ({"interpolation": "random"}, "'interpolation' must be one of nearest"),
        ({"mean": (0.5,), "std": (0.5,)}, "takes 3 channels, but its mean has 1 values"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], message: str) -> None:
    config = {**next(iter(CONFIGS.values()))[1], **change}
    with pytest.raises(ModelError, match=message):
        input_config(small(config))


@pytest.mark.parametrize(
    "options",
    [{"mean": ()}, {"mean": (float("nan"),)}, {"std": (0.0,)}, {"std": (-1.0,)}, {"crop": 0.0}, {"crop": True}],
)
def test_statistics_that_nobody_has(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="must be"):
        Preprocessing(**options)
