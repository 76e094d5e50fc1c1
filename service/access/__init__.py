"""API keys, rate limits and secrets."""
