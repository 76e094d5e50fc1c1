"""Item slots and the sequence encoder: model, fit and ONNX export."""
