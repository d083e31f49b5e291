"""ONNX graphs whose shape-dependent inputs the host program computes, see docs/onnx.md."""
