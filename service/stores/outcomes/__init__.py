"""Answers and their outcomes in Redis."""
