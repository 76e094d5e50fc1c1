"""One module for each file format that `vlm2rec data import` reads."""
