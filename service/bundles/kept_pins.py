"""Pins that replicas on this machine know of, from the local files in which they keep their directives."""

from pathlib import Path

from service.bundles.operator_state import OperatorStateCopy
from service.settings.load import state_directory


def kept_pins(*files: Path) -> frozenset[str]:
    """Ids of pinned bundles, of whatever registry; a file that cannot be read tells of none.

    Args:
        files: copies of directives that lie elsewhere than in the usual directory.
    """
    found = set()
    for path in (*state_directory().glob("directives-*.json"), *files):
        try:
            found.add(OperatorStateCopy.load(path).pin)
        except (OSError, ValueError):
            continue
    return frozenset(pin for pin in found if pin is not None)
