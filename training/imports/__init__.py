"""`vlm2rec data import`: turns files of shops and public data sets into a data set directory."""
