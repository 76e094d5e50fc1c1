"""Embeddings of all items, computed once for each content."""
