"""Commands that import, check or make a data set."""
