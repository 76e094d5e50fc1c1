"""Experiments: arms, which of them a user is in, and what a report says about them."""
