"""Item tables: ids, slots, rows, thumbnails and evaluation queries."""
