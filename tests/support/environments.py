"""Environment variables of processes that tests start."""

import os


def without_coverage() -> dict[str, str]:
    """This environment without the measurement of coverage, for a process that cannot save it or has none to add."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
