"""The README of a Triton model repository: how to start Triton with it, and who chooses the degree."""

from __future__ import annotations

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
Triton runs the degrees and knows no budget: the caller names the model, `…-r08` for degree 8. A model's configuration
says how images are prepared (mean … crop_mode) and how many a request holds. In Python, `Controller` of `tocom.runtime`
chooses the most accurate degree within a budget and learns from the round trips; `examples/triton_client.py` of tocom
is such a client.
"""


def readme(bundle: Bundle, engine: Sidecar | None, op_plugin: str | None) -> str:
    """Return the text.

    Args:
        bundle: Where the models come from.
        engine: One of the engines; None where the models are ONNX files.
        op_plugin: File name of the op plugin library that Triton must load, or None.
    """
    environment, options = "", ["--model-repository=/models", "--disable-auto-complete-config"]
    about = [_LINKS]
    if engine is not None:
        device = f"{engine.gpu or 'portable'} (compute capability {', '.join(engine.compute_capabilities)})"
        about = [_ENGINES.format(tensorrt=engine.backend_version, device=device)]
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
        _CHOOSING,
    ]
    return "\n".join(lines)
