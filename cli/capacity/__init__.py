"""Estimates what a size of shop takes: memory, replicas, Redis, Milvus, GPU hours (docs/capacity.md)."""
