"""Reads tables from CSV, JSON Lines and Parquet files."""
