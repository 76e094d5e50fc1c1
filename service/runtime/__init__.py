"""Threads, background tasks and memory of the process."""
