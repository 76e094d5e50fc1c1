"""Building a bundle and its FAISS file."""
