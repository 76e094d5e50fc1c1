"""Exports the event streams of Redis to a directory."""
