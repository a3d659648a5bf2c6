"""Load a timm Vision Transformer: by name, from a checkpoint of many libraries, or with random weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from tocom.compression.loading.adapters import merge_adapter
from tocom.compression.loading.files import Opened, open_checkpoint
from tocom.compression.loading.fit import check_finite, fit, fit_npz, npz_classes, side_of_positions
from tocom.compression.loading.preprocessing import Preprocessing, resolve_input
from tocom.compression.loading.readers.part import Found
from tocom.compression.loading.recognise import recognise
from tocom.compression.loading.sidecars import labels_of, preprocessing_of
from tocom.compression.surgery import check_supported
from tocom.errors import ModelError, RequestError, first_line

__all__ = ["LoadedModel", "load_model", "load_opened"]


@dataclass(frozen=True)
class LoadedModel:
    """A model, where its weights come from, and what its images and classes are.

    Attributes:
        model: In evaluation mode.
        name: timm name.
        weights: ``pretrained``, ``file``, ``random`` or ``memory``, as the bundle's manifest states it.
        labels: Names of the classes, or None.
        input_entry: The manifest's ``input``; left out, timm's config of the model.
        origins: Where each value of ``input_entry`` comes from, for people.
        taken: What was taken of the checkpoint, in one line.

    Raises:
        ModelError: The labels are not as many as the model's classes, or as :func:`resolve_input`.
    """

    model: VisionTransformer
    name: str
    weights: str
    labels: list[str] | None = None
    input_entry: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    taken: str = ""

    def __post_init__(self) -> None:
        if not self.input_entry:
            entry, origins = resolve_input(self.model, name=self.name)
            object.__setattr__(self, "input_entry", entry)
            object.__setattr__(self, "origins", origins)
        if self.labels is not None and len(self.labels) != self.model.num_classes:
            raise ModelError(
                f"The model has {self.model.num_classes} classes, but there are {len(self.labels)} labels. Give one "
                "name per class, in the order of the head."
            )


def load_model(
    name: str | None = None,
    *,
    weights: str | Path = "pretrained",
    adapter: str | Path | None = None,
    weights_key: str | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Create a timm Vision Transformer and load its weights strictly.

    Args:
        name: timm name, ``deit_small_patch16_224`` say. May be left out where the checkpoint says what it is.
        weights: ``pretrained`` (timm's hub), ``random`` (seeded; for timing only), or a checkpoint: a file or a folder
            of timm, Hugging Face, torchvision, open_clip, mmpretrain, DINO and more (docs/checkpoints.md).
        adapter: Folder of a LoRA of peft, merged into the weights.
        weights_key: Which set of weights, where a file holds several: ``state_dict_ema``.
        num_classes: Classes of the head; 0 for features. Without it, what the checkpoint or timm's default has.
        image_size: Side of the square image in pixels, or (height, width); without it the checkpoint's or the model's.
        in_chans: Channels of the image; without it the checkpoint's.
        model_options: More options of timm's ``create_model``: ``{"global_pool": "avg"}``.
        preprocessing: What is known of the images; the rest is taken from the checkpoint, then from timm's config.
        seed: Seed of the random weights.

    Raises:
        ModelError: The name is unknown, the model is not supported, or the checkpoint does not fit.
    """
    given = [] if preprocessing is None else [preprocessing]
    options = dict(model_options or {})
    origins: dict[str, str] = {}
    if num_classes is not None and num_classes < 0:
        raise ModelError(f"The 'num_classes' parameter must be 0 (for features) or more. Got {num_classes} instead.")
    for key, value in (("num_classes", num_classes), ("img_size", image_size), ("in_chans", in_chans)):
        if value is not None:
            options[key] = value
    if "img_size" in options:
        origins["size"] = "as asked"
    kind = str(weights)
    path = Path(weights)
    if kind not in ("pretrained", "random"):
        if path.suffix.lower() in (".npz", ".npy"):
            return _from_npz(name, path, options, given, origins)
        opened = open_checkpoint(path)
        if adapter is not None:
            opened = replace(opened, tensors=merge_adapter(opened.tensors, Path(adapter)))
        loaded = load_opened(opened, name, weights_key=weights_key, options=options, given=given, origins=origins)
        return loaded if adapter is None else replace(loaded, taken=f"{loaded.taken}; LoRA of {adapter} merged in")
    if weights_key is not None:
        raise RequestError(f"The 'weights_key' parameter belongs to a checkpoint file; weights are {kind!r}.")
    if name is None:
        raise ModelError(
            "The 'model' parameter must be a timm model name, or 'weights' a checkpoint that says what it is."
        )
    taken = "random weights, for timing only" if kind == "random" else f"timm's hub: {name}"
    model = _create(name, options, pretrained=kind == "pretrained", seed=seed)
    if adapter is not None:
        model.load_state_dict(merge_adapter(model.state_dict(), Path(adapter)), strict=True)
        taken += f"; LoRA of {adapter} merged in"
    return _loaded(model, name, kind, None, given, origins, taken)


def load_opened(
    opened: Opened,
    name: str | None,
    *,
    weights_key: str | None = None,
    options: Mapping[str, Any] | None = None,
    given: list[Preprocessing] | None = None,
    origins: dict[str, str] | None = None,
    kind: str = "file",
) -> LoadedModel:
    """Load what :func:`open_checkpoint` returned, or a state dict in memory. See :func:`load_model`."""
    options, origins = dict(options or {}), dict(origins or {})
    recognised = recognise(opened, weights_key)
    found, notes = recognised.found, list(recognised.notes)
    if recognised.loose_head is not None and options.get("num_classes") != 0:
        raise ModelError(
            f"{opened.path} has a head of its own beside the backbone, {recognised.loose_head}, and what it reads is "
            "not known. Pass --num-classes 0 to export the features alone, or save the whole by timm's names."
        )
    labels = labels_of(opened)
    found = _with_classes(found, options, opened)
    if name is None:
        if found.name is None:
            raise ModelError(
                f"{opened.path} looks like {found.family}, which does not say which model it is. Pass its timm name "
                "with --model."
            )
        name = found.name
        options = {**found.sizes, **options}
        notes.append(f"as {name}")
    options = {**found.options, **options}
    if options.get("img_size", 0) is None:
        del options["img_size"]
    weight = found.state.get("patch_embed.proj.weight", found.state.get("visual.conv1.weight"))
    channels = options.get("in_chans", 3) if weight is None or weight.ndim != 4 else weight.shape[1]
    if options.setdefault("in_chans", channels) != channels:
        raise ModelError(
            f"The 'in_chans' parameter must be {channels}, as {opened.path} has it. Got {options['in_chans']}."
        )
    model = _create(name, options)
    if "size" not in origins and (side := side_of_positions(model, found)) is not None:
        options["img_size"] = side
        model = _create(name, options)
    if "size" not in origins and ("img_size" in options):
        origins["size"] = "the checkpoint"
    notes += filter(None, [fit(model, name, opened.path, found)])
    sources = [*(given or []), *preprocessing_of(opened)]
    if found.preprocessing is not None:
        sources.append(found.preprocessing)
    if not model.num_classes:
        labels = None
    return _loaded(model, name, kind, labels, sources, origins, "; ".join(notes))


def _with_classes(found: Found, options: dict[str, Any], opened: Opened) -> Found:
    """Settle how many classes the head has; without one, or where none are wanted, the model gives features."""
    heads = [key for key in found.state if re.match(r"head(_dist)?\.|visual\.proj$", key)]
    weight = found.state.get("head.weight")
    classes = 0 if weight is None else len(weight)
    if "visual.proj" in found.state:
        classes = found.state["visual.proj"].shape[1]
    wanted = options.setdefault("num_classes", classes)
    if wanted == 0:
        return replace(found, state={key: value for key, value in found.state.items() if key not in heads})
    if wanted != classes:
        has = f"a head of {classes} classes" if classes else "no head"
        raise ModelError(
            f"The 'num_classes' parameter must be {classes} (or 0 for features), as {opened.path} has "
            f"{has}. Got {wanted}."
        )
    return found


def _from_npz(
    name: str | None, path: Path, options: dict[str, Any], given: list[Preprocessing], origins: dict[str, str]
) -> LoadedModel:
    if name is None:
        raise ModelError(f"{path} does not say which model it is. Pass its timm name with --model.")
    if not path.is_file():
        open_checkpoint(path)  # which says what is wrong with the path
    classes = npz_classes(path)
    if options.setdefault("num_classes", classes) not in (0, classes):
        raise ModelError(f"The 'num_classes' parameter must be {classes}, as {path} has. Got {options['num_classes']}.")
    model = _create(name, options)
    return _loaded(model, name, "file", None, given, origins, fit_npz(model, name, path))


def _loaded(
    model: VisionTransformer,
    name: str,
    kind: str,
    labels: list[str] | None,
    sources: list[Preprocessing],
    origins: dict[str, str],
    taken: str,
) -> LoadedModel:
    entry, found = resolve_input(model, *sources, name=name)
    origins = {"size": f"timm's config of {name}", **origins, **found}
    return LoadedModel(model.eval(), name, kind, labels, entry, origins, taken)


def _create(name: str, options: Mapping[str, Any], *, pretrained: bool = False, seed: int = 0) -> VisionTransformer:
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.split('_')[0]}*patch*")[:5]
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise ModelError(f"The 'model' parameter must be a timm model name. Got {name!r} instead.{hint}")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if pretrained else None
    classes = options.get("num_classes")
    if config is not None and classes and classes != config.num_classes:
        raise ModelError(
            f"The 'num_classes' parameter must be {config.num_classes} (or 0 for features), as timm's weights of "
            f"{name} have it: a head of {classes} would be untrained. Pass --weights FILE with a fine-tuned checkpoint."
        )
    torch.manual_seed(seed)
    try:
        if "dynamic_img_size" not in options and _is_dynamic_rotary(name):
            options = {**options, "dynamic_img_size": False}  # DINOv3, by timm's default
        model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm and its hub client raise all kinds; each one ends here, told apart by its text
        if pretrained:
            raise ModelError(
                f"Cannot load pretrained weights of {name}: {first_line(error)}. Without access to timm's hub, pass "
                "--weights FILE with a checkpoint, or --weights random for timing alone."
            ) from error
        shown = {key: value for key, value in options.items() if isinstance(value, (str, int, float, tuple))}
        raise ModelError(f"Cannot create {name} with {shown}: {first_line(error)}.") from error
    check_supported(model)
    height, width = model.patch_embed.img_size
    for side, patch in zip((height, width), model.patch_embed.patch_size, strict=True):
        if side <= 0 or side % patch:
            raise ModelError(
                f"The 'image_size' parameter must be a multiple of the patch, {patch} pixels. Got {height} × {width}."
            )
    if pretrained:
        check_finite(model.state_dict(), name)
    return model


def _is_dynamic_rotary(name: str) -> bool:
    if not is_model_in_modules(name.partition(".")[0], ["eva"]):
        return False
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return isinstance(model, Eva) and model.dynamic_img_size
