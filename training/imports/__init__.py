"""Imports: the files that shops and public data sets come in, turned into a data set directory."""
