"""Settings: their declarations, and how they are read."""
