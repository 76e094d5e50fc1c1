"""Embedding on several machines: who makes which shard, and with which engine."""
