"""One Triton model's ``config.pbtxt``, and the tensors of an ONNX file or engine as Triton names them.

Facts from Triton's model_config.proto and the sources of its onnxruntime and tensorrt backends: batching needs a first
dimension that is free in the model, and leaves it out of ``dims``; a model whose batch is fixed says
``max_batch_size: 0`` and writes it there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tocom.errors import BundleError, EngineError
from tocom.formats.onnx.summary import values
from tocom.formats.sidecar import EngineTensor

__all__ = ["TritonModel", "engine_tensors", "onnx_tensors"]

# TensorProto.DataType, and those of TensorRT's DataType, as the sidecar writes it, that Triton calls otherwise.
_ONNX_TYPES = {1: "FP32", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FP16", 16: "BF16"}
_ENGINE_TYPES = {"float": "FP32", "half": "FP16"}


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository.

    Attributes:
        name: The model's name, and its folder's.
        backend: ``onnxruntime`` or ``tensorrt``.
        batch: Smallest, optimal and largest count of images in one request.
        inputs: The inputs, their types by Triton's names, such as ``FP32``.
        outputs: The outputs, likewise.
        parameters: What else a client may ask the server for; texts.
        label_file: File with the classes' names beside the configuration, or None.
    """

    name: str
    backend: str
    batch: tuple[int, int, int]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    parameters: Mapping[str, str]
    label_file: str | None = None

    @property
    def batches(self) -> bool:
        """Whether the batch is free: fixed ones have no batching in Triton's sense."""
        return all(tensor.shape[:1] == (-1,) for tensor in (*self.inputs, *self.outputs))

    @property
    def max_batch_size(self) -> int:
        """What the configuration says."""
        return self.batch[2] if self.batches else 0

    def to_pbtxt(self) -> str:
        """Return the configuration in protobuf's text format."""
        blocks = [
            f"name: {_quoted(self.name)}",
            f"backend: {_quoted(self.backend)}",
            f"max_batch_size: {self.max_batch_size}",
            *(_block("input", self._tensor(tensor)) for tensor in self.inputs),
            *(_block("output", self._tensor(tensor, self._labels(tensor))) for tensor in self.outputs),
            # One: each further instance has a copy of the weights. KIND_AUTO takes the CPU where there is no GPU.
            _block("instance_group", ["count: 1", f"kind: KIND_{'GPU' if self.backend == 'tensorrt' else 'AUTO'}"]),
            *(
                _block("parameters", [f"key: {_quoted(key)}", f"value {{ string_value: {_quoted(text)} }}"])
                for key, text in self.parameters.items()
            ),
            self._warmup(),
        ]
        return "\n".join(blocks) + "\n"

    def _tensor(self, tensor: EngineTensor, more: Sequence[str] = ()) -> list[str]:
        return [f"name: {_quoted(tensor.name)}", *self._type(tensor), *more]

    def _type(self, tensor: EngineTensor) -> list[str]:
        dims = tensor.shape[1:] if self.batches else tensor.shape
        return [f"data_type: TYPE_{tensor.dtype}", f"dims: [ {', '.join(map(str, dims))} ]"]

    def _labels(self, tensor: EngineTensor) -> list[str]:
        # Triton's classification takes them: names are of the classes, not of features.
        is_named = self.label_file is not None and tensor.name == "logits"
        return [f"label_filename: {_quoted(str(self.label_file))}"] if is_named else []

    def _warmup(self) -> str:
        """Return a request of zeros: the first inference after a load is slow, and no client should meet it."""
        inputs = []
        for tensor in self.inputs:
            value = _block("value", [*self._type(tensor), "zero_data: true"])
            inputs.append(_block("inputs", [f"key: {_quoted(tensor.name)}", value]))
        return _block("model_warmup", ['name: "zeros"', f"batch_size: {max(self.max_batch_size, 1)}", *inputs])


def onnx_tensors(model: bytes, where: str) -> tuple[tuple[EngineTensor, ...], tuple[EngineTensor, ...]]:
    """Return the inputs and outputs of an ONNX file.

    Raises:
        BundleError: It is not an ONNX file, or a type has no name in Triton.
    """
    try:
        inputs, outputs = (
            tuple(EngineTensor(name, _ONNX_TYPES[kind], shape) for name, kind, shape in group)
            for group in values(model)
        )
    except (ValueError, KeyError) as error:
        raise BundleError(f"{where} has an input or output that Triton cannot take ({error}). Export again.") from error
    return inputs, outputs


def engine_tensors(described: Sequence[EngineTensor]) -> tuple[EngineTensor, ...]:
    """Return the inputs or outputs of an engine, as its sidecar describes them.

    Raises:
        EngineError: A type has no name in Triton.
    """
    tensors = []
    for entry in described:
        data_type = _ENGINE_TYPES.get(entry.dtype, entry.dtype.upper())
        if data_type not in _ONNX_TYPES.values():
            raise EngineError(
                f"The engine has {entry.name} of type {entry.dtype!r}, which Triton does not know. It knows: "
                f"{', '.join(_ONNX_TYPES.values())}. Export with another precision."
            )
        tensors.append(EngineTensor(entry.name, data_type, entry.shape))
    return tuple(tensors)


def _block(name: str, lines: Sequence[str]) -> str:
    inner = "\n".join(f"  {line}" for text in lines for line in text.split("\n"))
    return f"{name} {{\n{inner}\n}}"


def _quoted(text: str) -> str:
    """Return a text as protobuf's text format writes it; of JSON's escapes it knows all that ASCII needs."""
    return json.dumps(text, ensure_ascii=False)
