"""An ONNX file in real half arithmetic: every op's result is rounded, and overflows, as a half-precision device's does.

ONNX Runtime has few half-precision kernels on the CPU: it computes in float32 between casts of its own and drops casts
that undo each other, so an overflow in between stays unseen. ONNX's own reference evaluator computes each node in
numpy, in the node's type; products are taken here in float32, as devices accumulate, and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["one_behind_the_other", "run_in_half"]


class MatMul(OpRun):
    """``numpy.matmul`` of halves has no fast way; that of floats has."""

    op_domain = ""

    def _run(self, a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any]]:
        if a.dtype != np.float16:
            return (np.matmul(a, b),)
        return (np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.float16),)


class Gemm(OpRun):
    """As ``MatMul``, with a bias."""

    op_domain = ""

    def _run(
        self,
        a: NDArray[Any],
        b: NDArray[Any],
        c: NDArray[Any] | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        transA: int = 0,
        transB: int = 0,
    ) -> tuple[NDArray[Any]]:
        left, right = (a.T if transA else a).astype(np.float32), (b.T if transB else b).astype(np.float32)
        product = alpha * np.matmul(left, right)
        return ((product if c is None else product + beta * c.astype(np.float32)).astype(a.dtype),)


class Erf(OpRun):
    """The evaluator's own calls Python's ``math.erf`` for each value."""

    op_domain = ""

    def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
        return (torch.erf(torch.from_numpy(x.astype(np.float32))).numpy().astype(x.dtype),)


class Conv(OpRun):
    """The patch embedding; the evaluator's own loops in Python."""

    op_domain = ""

    def _run(
        self,
        x: NDArray[Any],
        w: NDArray[Any],
        b: NDArray[Any] | None = None,
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int = 1,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[NDArray[Any]]:
        del auto_pad, kernel_shape
        x32, w32 = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(w.astype(np.float32))
        b32 = None if b is None else torch.from_numpy(b.astype(np.float32))
        padding = tuple((pads or [0, 0, 0, 0])[:2])
        stride, dilation = tuple(strides or (1, 1)), tuple(dilations or (1, 1))
        done = torch.nn.functional.conv2d(x32, w32, b32, stride, padding, dilation, group)
        return (done.numpy().astype(x.dtype),)


class OneHot(OpRun):
    """The evaluator's own takes no depth of one element, which ONNX allows."""

    op_domain = ""

    def _run(self, indices: NDArray[Any], depth: NDArray[Any], values: NDArray[Any], axis: int = -1) -> Any:
        classes = np.arange(int(np.ravel(depth)[0]))
        hot = np.expand_dims(indices, axis) == classes.reshape([-1 if at == axis % (indices.ndim + 1) else 1
                                                              for at in range(indices.ndim + 1)])  # fmt: skip
        return (np.where(hot, values[1], values[0]).astype(values.dtype),)


_OPS = [MatMul, Gemm, Erf, Conv, OneHot]


def one_behind_the_other(outputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return outputs, each [images, …], as rows [images, values]."""
    return np.concatenate([output.reshape(len(output), -1) for output in outputs], axis=-1)


def run_in_half(path: Path, images: NDArray[Any], *, batch: int | None) -> NDArray[np.float32]:
    """Return an ONNX file's outputs one behind the other, [images, values], computed op by op in each op's own type.

    Args:
        path: The ONNX file, its weights beside it.
        images: [count, channels, height, width] as the file takes them.
        batch: The file's fixed batch, or None.
    """
    # The evaluator hands every attribute of a node to its function, and stumbles over those for op plugins.
    model = inline_local_functions(onnx.load(path))
    evaluator = ReferenceEvaluator(model, new_ops=_OPS)
    step = batch or 1
    parts = []
    with np.errstate(all="ignore"), torch.no_grad():
        for start in range(0, len(images), step):
            part = images[start : start + step]
            filled = np.resize(part, (step, *part.shape[1:]))
            outputs: Any = evaluator.run(None, {"images": filled})
            parts.append(one_behind_the_other(outputs)[: len(part)])
    return np.concatenate(parts).astype(np.float32)
