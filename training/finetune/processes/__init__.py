"""Spreads one run over processes and machines: agreement on inputs, copies, sharded weights and their checkpoints."""
