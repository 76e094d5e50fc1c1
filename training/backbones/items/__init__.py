"""Encodes items with pretrained models that take one text or one picture at a time."""
