"""The token buckets that replicas share."""
