"""Vector search: FAISS, exact search, scores and the ONNX encoder."""
