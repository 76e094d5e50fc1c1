"""`vlm2rec evaluate`: ranks of every system on held-out events."""
