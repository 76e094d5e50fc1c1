"""`vlm2rec data check`: defects of a data set."""
