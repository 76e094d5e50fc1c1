"""Exports the towers of a trained run to ONNX."""
