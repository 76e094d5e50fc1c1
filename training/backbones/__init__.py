"""Loads vision-language models and encodes prompts with them."""
