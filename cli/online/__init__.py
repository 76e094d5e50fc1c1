"""Commands that build and publish bundles, serve them and check a running service."""
