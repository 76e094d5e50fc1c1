"""What an exporter reads from Redis and records in it."""
