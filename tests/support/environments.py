"""Environment variables of processes that tests start, and calls that the measurement of coverage leaves out."""

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def without_coverage() -> dict[str, str]:
    """This environment without the measurement of coverage, for a process that cannot save it or has none to add."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def untraced(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """A call of a library during which no line is traced: tracing doubles the time of one that is written in Python."""

    @functools.wraps(call)
    def calling(*given: _P.args, **named: _P.kwargs) -> _T:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return call(*given, **named)
        finally:
            sys.settrace(trace)

    return calling
