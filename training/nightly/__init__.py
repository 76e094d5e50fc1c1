"""`vlm2rec reindex`: the nightly job that updates a bundle."""
