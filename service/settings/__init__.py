"""Declaration and reading of the settings."""
