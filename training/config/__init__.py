"""Configuration of runs and of the sequence encoder."""
