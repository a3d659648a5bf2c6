"""The README of a Triton model repository: how to start Triton with it, and who chooses the degree."""

from __future__ import annotations

from collections.abc import Mapping

from tocom.export.triton.config import TritonModel
from tocom.formats.bundle import Bundle
from tocom.formats.engine import SELF_REGISTER
from tocom.formats.sidecar import Sidecar

__all__ = ["readme"]

_LINKS = """\
ONNX Runtime reads a model's weights from beside it. Here they stand on the disk once, with a name (a hard link) in
every model's folder. Copies that know no links hold them once per degree: use `rsync -H`, `cp -a` or `tar`. In memory,
every model has its own.
"""
_ENGINES = """\
The engines were built by TensorRT {tensorrt} for {device}. Take the release of Triton that has this TensorRT, on this
GPU.
"""
_OP_PLUGIN = """\
Merging and pruning run in `{library}`. Triton opens it and does no more, so the variable asks it to register its ops by
itself. Do not load it with `LD_PRELOAD`: TensorRT is not there yet at that time.
"""
_CHOOSING = """\
## Which degree
Triton runs the degrees and knows no budget: the caller names the model. In Python, `Controller` of `tocom.runtime`
chooses the most accurate degree within a budget and learns from the round trips; `examples/triton_client.py` of tocom
is such a client.
"""


def readme(bundle: Bundle, models: Mapping[int, TritonModel], engine: Sidecar | None, op_plugin: str | None) -> str:
    """Return the text.

    Args:
        bundle: Where the models come from.
        models: Each degree's model.
        engine: One of the engines; None where the models are ONNX files.
        op_plugin: File name of the op plugin library that Triton must load, or None.
    """
    environment, options = "", ["--model-repository=/models", "--disable-auto-complete-config"]
    about = [_LINKS]
    if engine is not None:
        device = f"{engine.gpu or 'portable'} (compute capability {', '.join(engine.compute_capabilities)})"
        about = [_ENGINES.format(tensorrt=engine.backend_version, device=device)]
        if engine.options.version_compatible:
            options.append("--backend-config=tensorrt,version-compatible=true")
    if op_plugin is not None:
        environment = f"{SELF_REGISTER}=1 "
        options.append(f"--backend-config=tensorrt,plugins=/models/{op_plugin}")
        about.append(_OP_PLUGIN.format(library=op_plugin))
    lines = [
        f"# {bundle.model_name} for Triton Inference Server, one model per degree",
        f"Written by tocom from the bundle with fingerprint `{bundle.fingerprint}`. Start the server with",
        "```",
        f"{environment}tritonserver {' '.join(options)}",
        "```",
        "`/models` is this folder as Triton sees it. `--disable-auto-complete-config` takes the configurations as they",
        "are.",
        "",
        *about,
        "| model | degree | tokens in … out | GMACs |",
        "| --- | ---: | ---: | ---: |",
        *(_row(bundle, degree, model) for degree, model in models.items()),
        "",
        "## Requests",
        _requests(next(iter(models.values()))),
        "",
        _CHOOSING,
    ]
    return "\n".join(lines)


def _row(bundle: Bundle, degree: int, model: TritonModel) -> str:
    entry = bundle.degrees[degree]
    return (
        f"| `{model.name}` | {degree} | {entry.token_counts[0]} … {entry.token_counts[-1]} | {entry.macs / 1e9:.2f} |"
    )


def _requests(model: TritonModel) -> str:
    images = model.inputs[0]
    shape = ", ".join("batch" if size < 0 else str(size) for size in images.shape)
    smallest, _, largest = model.batch
    batch = f"{smallest} to {largest} images" if model.batches else f"exactly {largest}"
    joined = "joins" if model.dynamic_batching else "does not join"
    return (
        f"`{images.name}`: {images.data_type} [{shape}], prepared as the parameters of each model's configuration say "
        f"(mean … crop_mode). A request holds {batch}; Triton {joined} those of several clients."
    )
