"""Filters over item metadata and the text search."""
