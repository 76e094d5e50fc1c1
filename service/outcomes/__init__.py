"""What answers brought: kept answers, attributed events, counts."""
