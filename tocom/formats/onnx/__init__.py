"""ONNX files, read and rewritten without the onnx package."""
