"""Reads data sets in object stores: their tables by a copy, their pictures one by one."""
