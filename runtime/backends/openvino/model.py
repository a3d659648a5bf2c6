"""A degree's ONNX as OpenVINO can read it from memory: no model-local functions, no weights in other files.

OpenVINO knows no model-local functions, so their bodies take the places of the calls (``onnx.inliner``). From memory
it reads no weights of other files either: large ones become inputs, for which the caller puts constants, small ones
are put into the model, since operators may need their values while the model is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.formats.onnx.tensors import external_data

__all__ = ["readable_model"]

_INSIDE_BYTES = 16 << 10


def readable_model(
    model: bytes, content: Callable[[str, int, int], NDArray[np.uint8]]
) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """Return the model without functions and without data in other files, and the weights that became inputs.

    Args:
        model: Bytes of an ONNX file.
        content: Returns bytes of another file, given its location, the offset and the length. Weights that became
            inputs are views of what it returns.

    Raises:
        ValueError: The bytes are not an ONNX file, or other tensors than initializers lie outside it.
    """
    import onnx
    import onnx.external_data_helper
    import onnx.inliner
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.ModelProto.FromString(model)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
    except (DecodeError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    weights: dict[str, NDArray[Any]] = {}
    kept = []
    inputs = {each.name for each in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = onnx.external_data_helper.ExternalDataInfo(tensor)
            raw = content(where.location, where.offset or 0, where.length or 0)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            # numpy has no bfloat16: onnx names ml_dtypes' type for it, and before 1.18 float32.
            is_plain = dtype.isbuiltin == 1 and len(raw) == dtype.itemsize * math.prod(tensor.dims)
            is_plain = is_plain and raw.ctypes.data % dtype.itemsize == 0
            if len(raw) > _INSIDE_BYTES and is_plain:
                weights[tensor.name] = raw.view(dtype).reshape(tuple(tensor.dims))
                if tensor.name not in inputs:
                    proto.graph.input.append(
                        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims))
                    )
                continue
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = raw.tobytes()
        kept.append(tensor)
    rest = onnx.GraphProto(initializer=kept)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(rest.initializer)
    data = proto.SerializeToString()
    if next(external_data(data), None) is not None:
        raise ValueError("tensors outside the file that are not initializers are not supported")
    return data, weights
