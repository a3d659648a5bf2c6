"""The device layer: what the TensorRT backend needs of CUDA, behind one small interface."""
