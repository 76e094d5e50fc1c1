"""`vlm2rec data fetch-images`: fetches pictures from public addresses."""
