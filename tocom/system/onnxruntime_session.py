"""ONNX Runtime sessions: the options that every one has here, and weights that lie beside a model in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["open_session", "session_options"]

# Fused kernels of the CPU provider that are slower than the nodes they replace: 3 to 4 % of all a dense DeiT-S takes on
# one thread (1.31, AVX-512; benchmarks/fusions.py). A release that does not know a name, or the option, ignores it.
_SLOWER_FUSIONS = ("BiasGeluFusion", "SkipLayerNormFusion")


def session_options(threads: int | None = None, *, cpu: bool = True) -> Any:
    """Return options of a session that says errors alone.

    Args:
        threads: Threads of one inference; None leaves them to ONNX Runtime.
        cpu: The session has the CPU's provider alone.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads of an idle session spin for a while by default: after a switch they fight the new session's threads
    # for the cores (two cores, DeiT-S: 57 ms instead of 30).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if cpu:
        options.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(_SLOWER_FUSIONS))
    return options


def open_session(
    model: bytes, folder: Path, options: Any, *, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> Any:
    """Open a session of a model in memory, whose weights lie in ``folder``: a path could lead to others by now.

    Raises:
        Exception: ONNX Runtime's own, of many types that share no base.
    """
    import onnxruntime

    with _utf8_path(folder) as readable:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", readable)
        return onnxruntime.InferenceSession(model, options, providers=list(providers))


@contextlib.contextmanager
def _utf8_path(folder: Path) -> Iterator[str]:
    """Yield a path that ONNX Runtime takes: one whose bytes are not UTF-8 by the number of its open folder."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield str(folder)
