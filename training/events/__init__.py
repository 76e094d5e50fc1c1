"""Reads exported events as interactions, and joins them with those of a data set."""
