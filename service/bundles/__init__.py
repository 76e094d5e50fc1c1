"""Loading, validating, swapping and pinning bundles."""
