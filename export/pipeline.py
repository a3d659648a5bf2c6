"""The whole export: one model, one compensator, many degrees, one bundle."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tocom.alignment.alignment import Alignment
from tocom.compensator.compensator import Compensator, model_sha256
from tocom.compression.features import check_patches
from tocom.compression.loading.memory import from_memory
from tocom.compression.loading.model import LoadedModel
from tocom.compression.macs import count_macs
from tocom.compression.surgery import compress, input_tokens
from tocom.compression.tokens import removal_schedule, token_counts
from tocom.errors import CompensatorError, DegreeError, ExportError
from tocom.export.graph.alignment import Placement
from tocom.export.graph.check import CheckResult, check_onnx, sample_images, torch_answers
from tocom.export.graph.half import HalfPlan, magnitudes, plan_half
from tocom.export.graph.projections import projection_weights
from tocom.export.graph.retarget import at_degree
from tocom.export.graph.templates import Templates, put_shared
from tocom.export.graph.trace import DTYPES, Outputs, Tracing
from tocom.export.references import ReferenceImages, add_references, rounding_changes
from tocom.formats.bundle import MANIFEST_NAME, SCHEMA_VERSION, WEIGHTS_NAME, Bundle
from tocom.formats.families import EVERY, named_family
from tocom.formats.manifest import INPUT_TYPES
from tocom.formats.references import REFERENCES_NAME, in_row
from tocom.formats.sealed_json import write_sealed_json
from tocom.formats.weights import WeightStore
from tocom.system.files import atomic_folder, sha256_file
from tocom.system.onnxruntime_session import session_options
from tocom.system.progress import Progress, silent
from tocom.version import __version__

__all__ = ["export"]


def export(
    model: nn.Module | LoadedModel,
    out: Path | str,
    *,
    degrees: Sequence[int],
    compensator: Compensator | None = None,
    scale: float | None = None,
    alignment: Alignment | None = None,
    source_degree: int = 0,
    method: str = "merge",
    family: str | None = None,
    fuse: bool = False,
    features: bool = False,
    patch_features: bool = False,
    precision: str = "fp32",
    input_type: str = "float32",
    batch: int | tuple[int, int, int] = 1,
    labels: Sequence[str] | None = None,
    check: bool = True,
    check_images: np.ndarray | None = None,
    overwrite: bool = False,
    templates: Templates | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Write a bundle: a manifest, one ONNX file per degree with the compensator merged in, and the weights once.

    The model is traced at most twice (dense and compressed); each degree is then a rewrite of that graph.

    Args:
        model: What :func:`tocom.compression.loading.model.load_model` returned; or a dense timm Vision Transformer, one
            in a wrapper of torch, in half precision, or of torchvision or transformers.
        out: Folder to write. It appears whole or not at all.
        degrees: Target degrees; 0 is the dense model.
        compensator: Merged at every degree other than ``source_degree``.
        scale: Overrides the compensator's scale.
        alignment: Fitted with the same model, compensator and options. It goes into the head of each degree, where
            features are an output into one product before it.
        source_degree: Degree that the model was fine-tuned at.
        method: ``merge`` or ``prune``.
        family: Which blocks remove tokens: see :mod:`tocom.formats.families`. None is the compensator's, without
            one ``every``.
        fuse: With ``prune``: fuse the removed tokens into one.
        features: Beside ``logits`` give the pooled ``features`` [batch, channels] that the classifier reads.
        patch_features: Last, give ``patch_features`` [batch, patches, channels], behind the last norm and in the grid's
            order: each patch has the features of the token that it became part of.
        precision: ``fp32``, ``fp16`` or ``bf16``; input and output stay float32.
        input_type: ``float32``, images that are normalised; or ``uint8``: their pixels, a fourth of the bytes, which
            the graph normalises.
        batch: A fixed batch, or (smallest, optimal, largest).
        labels: Names of the classes.
        check: Compare every degree with torch, under ONNX Runtime on the CPU.
        check_images: Images for that, [count, channels, height, width] float32, and for the reference answers in the
            bundle, so real ones are best; both see them in eight bits. Without them, smooth random ones.
        overwrite: Replace ``out`` when it exists.
        templates: Share one object among exports of the same model, and torch traces it once for all of them.
        progress: Called with what is being done, the steps done, and all steps.

    Returns:
        The bundle.

    Raises:
        ModelError: The model is not supported.
        DegreeError: A degree, the method, the family or the batch is out of range.
        CompensatorError: The compensator does not fit.
        AlignmentError: The alignment was fitted on something else, or lacks a degree.
        ExportError: Tracing failed, or an ONNX file does not compute what torch computes.
        OutputError: The bundle cannot be written.
    """
    loaded = from_memory(model)
    vit = loaded.model
    tokens, prefix, depth = input_tokens(vit), vit.num_prefix_tokens, len(vit.blocks)
    family = named_family(family or (EVERY if compensator is None else compensator.family), depth)
    degrees = sorted(set(degrees))
    if not degrees:
        raise DegreeError("The 'degrees' parameter must name at least one degree. Got none.")

    def reference_at(degree: int) -> nn.Module:
        return compress(
            vit,
            degree,
            method=method,
            family=family,
            fuse=fuse,
            compensator=compensator,
            source_degree=source_degree,
            scale=scale,
            alignment=alignment,
        )

    for degree in degrees:
        reference_at(degree)  # raises what does not fit, before the slow part
    _check_request(vit, compensator, precision, input_type, batch, labels, features=features)
    if patch_features:
        check_patches(vit, method, fuse=fuse)
    placement = Placement(vit, alignment, degrees, features=features)
    outputs = Outputs(features, patch_features)
    fixed = batch if isinstance(batch, int) else None
    minimum, optimum, maximum = (batch,) * 3 if isinstance(batch, int) else batch
    entry = {**loaded.input_entry, "dtype": input_type, "sources": loaded.origins}
    entry["shape"] = list(entry["shape"])
    entry["shape"][0] = fixed or "batch"
    if check:
        session_options()  # a missing ONNX Runtime shows here, before the slow part
    templates = templates or Templates()
    done = itertools.count()

    def begin(what: str) -> None:
        progress(what, next(done), 1 + 2 * len(degrees))

    given = sample_images(tuple(entry["shape"][1:])) if check_images is None else check_images
    references = ReferenceImages(given, entry, values=outputs.values(vit), degrees=len(degrees))

    with _evaluating(vit), atomic_folder(out, overwrite=overwrite) as folder:
        plan = HalfPlan()
        if precision == "fp16":
            ends = sorted({degrees[0], degrees[-1]})
            plan = plan_half([magnitudes(reference_at(degree), references.images) for degree in ends], vit)
        schedules = {degree: removal_schedule(tokens, depth, degree, prefix, family) for degree in degrees}
        with WeightStore(folder / WEIGHTS_NAME) as store:
            begin("tracing the model")
            graphs = {}
            pixels = (tuple(entry["mean"]), tuple(entry["std"])) if input_type == "uint8" else None
            for compressed in sorted({degree > 0 for degree in degrees}):
                how = Tracing(
                    compressed=compressed,
                    method=method,
                    family=family,
                    fuse=fuse,
                    outputs=outputs,
                    precision=precision,
                    plan=plan,
                    pixels=pixels,
                )
                graphs[compressed] = templates.make(vit, placement, how)
                put_shared(graphs[compressed], store, vit, changing=placement.names)
            for degree, removed in schedules.items():
                begin(f"writing degree {degree}")
                proto = at_degree(
                    graphs[degree > 0],
                    removed,
                    tokens=tokens,
                    prefix=prefix,
                    family=family,
                    batch=fixed,
                    # Tokens are merged and pruned in the residual sum's type.
                    precision="fp32" if plan else precision,
                )
                weights = projection_weights(reference_at(degree), precision=precision, wide=plan.attention)
                weights |= placement.weights(proto.graph, degree, precision=precision)
                _put_weights(proto, store, weights)
                onnx.save(proto, folder / _file_name(degree))
                named = proto.graph.output
        results: dict[int, CheckResult] = {}
        expected: dict[int, np.ndarray] = {}
        conclusive: dict[int, np.ndarray] = {}
        for degree in degrees:
            begin(f"checking degree {degree} against torch" if check else f"reference answers of degree {degree}")
            reference = reference_at(degree)
            parts = torch_answers(reference, references.images, outputs)
            expected[degree] = in_row(parts)
            decided = np.ones(len(references.images), dtype=bool)
            if check:
                results[degree] = check_onnx(
                    folder / _file_name(degree),
                    reference,
                    references.images,
                    parts,
                    inputs=references.inputs,
                    precision=precision,
                    batch=fixed,
                    outputs=outputs,
                )
                decided = ~results[degree].undecided
            steady = decided & ~rounding_changes(reference, references.images, parts, outputs, precision=precision)
            # Without one that TF32 answers alike, those that float32 does: better than none.
            conclusive[degree] = steady if steady.any() else decided
        described = add_references(
            folder / REFERENCES_NAME,
            references,
            expected,
            conclusive,
            precision=precision,
            source="smooth" if check_images is None else "given",
        )
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "created_by": f"tocom {__version__}",
            "model": {
                "name": loaded.name,
                "fingerprint": model_sha256(vit),
                "weights": loaded.weights,
                "prefix_tokens": prefix,
            },
            "method": method,
            "family": family,
            "fuse": fuse,
            "source_degree": source_degree,
            "compensator": None
            if compensator is None
            else {"sha256": model_sha256(compensator), "scale": compensator.check_scale(scale)},
            "alignment": None if alignment is None else alignment.describe(),
            "precision": precision,
            "kept_in_float32": [asdict(kept) for kept in plan.kept],
            "batch": {"min": minimum, "opt": optimum, "max": maximum},
            "input": entry,
            "outputs": [
                {
                    "name": output.name,
                    "shape": [dim.dim_value or dim.dim_param for dim in output.type.tensor_type.shape.dim],
                }
                for output in named
            ],
            "labels": list(labels) if labels is not None else loaded.labels,
            "degrees": [
                {
                    "degree": degree,
                    "onnx": _file_name(degree),
                    "token_counts": list(token_counts(tokens, removed)),
                    "macs": count_macs(vit, removed, method=method) + placement.macs(degree),
                    "check": results[degree].to_json() if degree in results else None,
                }
                for degree, removed in schedules.items()
            ],
            "references": described,
            "files": {
                file.name: {"sha256": sha256_file(file), "size": file.stat().st_size}
                for file in sorted(folder.iterdir())
            },
        }
        write_sealed_json(folder / MANIFEST_NAME, manifest)
    # Every byte was hashed a moment ago.
    return Bundle(out, verify=False)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every part of it back into its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _check_request(
    vit: VisionTransformer,
    compensator: Compensator | None,
    precision: str,
    input_type: str,
    batch: int | tuple[int, int, int],
    labels: Sequence[str] | None,
    *,
    features: bool,
) -> None:
    """Check what the compressed models themselves do not."""
    if precision not in DTYPES:
        raise ExportError(f"The 'precision' parameter must be one of {', '.join(DTYPES)}. Got {precision!r} instead.")
    if input_type not in INPUT_TYPES:
        raise ExportError(f"The 'input_type' parameter must be one of {', '.join(INPUT_TYPES)}. Got {input_type!r}.")
    sizes = (batch,) * 3 if isinstance(batch, int) else tuple(batch)
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ExportError(f"The 'batch' parameter must be N or min:opt:max, each at least 1, ascending. Got {batch!r}.")
    if features and isinstance(vit.head, nn.Identity):
        raise ExportError("The 'features' parameter is for models with a classifier: this one gives features alone.")
    if compensator is not None:
        size = "x".join(str(side) for side in vit.patch_embed.img_size)
        trained = compensator.metadata.get("image_size", size)
        if trained != size:
            raise CompensatorError(
                f"The compensator was trained at image size {trained}, the model runs at {size}: a degree is another "
                f"share of the tokens there. Export at {trained}, or train a compensator at {size}."
            )
    classes = vit.head.out_features if isinstance(vit.head, nn.Linear) else None
    if labels is not None and classes is not None and len(labels) != classes:
        raise ExportError(f"The 'labels' parameter must name {classes} classes, as the model has. Got {len(labels)}.")


def _put_weights(proto: onnx.ModelProto, store: WeightStore, weights: dict[str, onnx.TensorProto]) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            replacement = weights.pop(tensor.name)
            if list(replacement.dims) != list(tensor.dims) or replacement.data_type != tensor.data_type:
                raise ExportError(f"The traced graph holds {tensor.name} with another shape or type than the model.")
            tensor.CopyFrom(replacement)
            store.take(tensor)
    if weights:
        raise ExportError(f"The traced graph lacks the initializers {', '.join(sorted(weights)[:3])} …")


def _file_name(degree: int) -> str:
    return f"degree-{degree:02d}.onnx"
