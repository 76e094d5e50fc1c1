"""`vlm2rec data check`: finds the defects of a data set."""
