"""Configuration keys that were renamed: files with the former names are still read."""

import warnings
from collections.abc import Mapping
from typing import Any

from training.errors import ConfigError

FORMER_KEYS: Mapping[str, str] = {
    "loss.wpcl_weight": "loss.mu",
    "loss.crtr_weight": "loss.lam",
    "loss.unimodal_weight": "loss.nu",
    "loss.confidence_gap_decay": "loss.lead_decay",
}
"""Key → its former name; section and key are joined by a dot."""


def former_key(key: str) -> str:
    """The name under which a key enters a fingerprint, so that the fingerprints of earlier runs stay valid."""
    return FORMER_KEYS.get(key, key)


def rename_former_keys(values: dict[str, Any], where: str, *, warn: bool) -> None:
    """Replace former names of keys by the current ones, in place.

    Args:
        values: section → key → value.
        where: file name, for messages.
        warn: emit a FutureWarning that names the new key.

    Raises:
        ConfigError: a key is given under both names.
    """
    for key, former in FORMER_KEYS.items():
        section, new = key.split(".")
        old = former.rpartition(".")[2]
        table = values.get(section)
        if not isinstance(table, dict) or old not in table:
            continue
        if new in table:
            raise ConfigError(f"{where}: {former} is the former name of {key}, which is set too; remove {former}")
        table[new] = table.pop(old)
        if warn:
            message = f"{where}: {former} is now called {key}; the former name stops working in the next release"
            warnings.warn(message, FutureWarning, stacklevel=4)
