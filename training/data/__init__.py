"""Catalogue, interactions and pictures as they are read from files."""
