"""Fine-tunes a backbone on pairs of history and next item."""
