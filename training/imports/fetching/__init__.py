"""`vlm2rec data fetch-images`: pictures fetched from public addresses."""
