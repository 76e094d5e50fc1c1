"""`vlm2rec retrain`: freezes catalogue and events, compares recipes, trains, and publishes."""
