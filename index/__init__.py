"""Builds, publishes, loads and searches bundles: the items, vectors, index and encoder that a service answers with."""
