"""Export for onnxruntime-genai: graphs that compute what a host program of `onnx` computes."""
