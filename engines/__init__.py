"""What runs a bundle: ONNX Runtime on the CPU today, a numpy toy for tests. numpy only at import."""
