"""Reads catalogue, interactions and pictures from files."""
