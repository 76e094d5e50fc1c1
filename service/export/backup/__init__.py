"""Backups of Redis and the registry."""
