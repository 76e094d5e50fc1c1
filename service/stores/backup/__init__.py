"""What a backup reads from Redis and a restore writes to it."""
