"""From a torch model to one ONNX graph."""
