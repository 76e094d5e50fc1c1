"""Item-to-item lists of a data set: built, weighed on validation, and ranked with."""
