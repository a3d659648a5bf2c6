"""The scripted TensorRT has only what TensorRT's module has: names and arguments, from TensorRT's own type stubs."""

from __future__ import annotations

import pytest
import scripted_engines
from tensorrt_names import differences

from tocom.errors import EngineError
from tocom.runtime.backends.tensorrt.library import import_tensorrt

NAMES = ["ILogger", "TensorIOMode", "ExecutionContextAllocationStrategy", "IPluginRegistry", "Runtime", "ICudaEngine"]


@pytest.mark.parametrize("name", NAMES)
def test_the_scripted_module_has_only_names_and_arguments_of_tensorrt(name: str) -> None:
    assert differences(getattr(scripted_engines, name), name) == []


def test_what_tensorrt_rtx_has_beside_them_is_asked_for_alone() -> None:
    """``is_stream_capturable`` is TensorRT-RTX's; the context asks whether it is there before it calls it."""
    found = differences(scripted_engines.IExecutionContext, "IExecutionContext")
    assert found == ["IExecutionContext has no is_stream_capturable"]
    try:
        rtx = import_tensorrt("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))
    for name in (*NAMES, "IExecutionContext"):
        for member in vars(getattr(scripted_engines, name)):
            assert member.startswith("_") or hasattr(getattr(rtx, name), member), f"{name}.{member}"


def test_a_difference_is_found() -> None:
    class Context:
        def set_input_shape(self, shape: tuple[int, ...]) -> bool:
            return True

        def set_shapes(self) -> None:
            pass

    assert differences(Context, "IExecutionContext") == [
        "IExecutionContext.set_input_shape takes "
        "[['self', 'name', 'shape'], ['self', 'name', 'shape'], ['self', 'name', 'shape']], not ['self', 'shape']",
        "IExecutionContext has no set_shapes",
    ]
