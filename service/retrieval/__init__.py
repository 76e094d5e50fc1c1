"""Finds the best items of a bundle for a query: in FAISS here, or in another store."""
