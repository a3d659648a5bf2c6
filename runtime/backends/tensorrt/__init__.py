"""TensorRT and TensorRT-RTX as a backend."""
