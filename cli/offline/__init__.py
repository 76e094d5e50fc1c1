"""Commands that prepare data, train, evaluate and re-index."""
