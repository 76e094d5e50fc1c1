"""Fits and exports the item slots and the sequence encoder."""
