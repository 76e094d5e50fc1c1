"""`vlm2rec reindex`: the nightly job."""
