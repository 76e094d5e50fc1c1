"""Errors of the command line, one tree.

CliError
├── CapacityError      an estimate cannot be made
└── LiveServiceError   a running service cannot be reached, or does not answer as it should
"""


class CliError(Exception):
    """Root of the errors of this package."""


class LiveServiceError(CliError):
    """A running service cannot be reached, or does not answer as it should."""


class CapacityError(CliError):
    """An estimate cannot be made: a coefficient breaks a rule, or a size cannot be served."""
