"""Histories and operator state in Redis."""
