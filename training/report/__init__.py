"""Renders the report page of a training run."""
