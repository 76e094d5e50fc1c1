"""Milvus: one collection for each bundle, how it is filled, and how it is searched."""
