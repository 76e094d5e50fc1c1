"""Configuration of training runs and of the sequence encoder."""
