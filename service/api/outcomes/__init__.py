"""The routes of outcomes and experiments, and what other routes do for them."""
