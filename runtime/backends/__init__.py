"""What computes, behind one seam: ONNX Runtime, OpenVINO, TensorRT and TensorRT-RTX."""
