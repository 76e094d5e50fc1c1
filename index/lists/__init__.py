"""Item-to-item lists: the most similar items of each item, and the scores that histories get from them."""
