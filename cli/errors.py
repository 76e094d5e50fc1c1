"""Errors of the command line, one tree.

CliError
└── LiveServiceError   a running service cannot be reached, or does not answer as it should
"""


class CliError(Exception):
    """Root of the errors of this package."""


class LiveServiceError(CliError):
    """A running service cannot be reached, or does not answer as it should."""
