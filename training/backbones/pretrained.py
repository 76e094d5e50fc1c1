"""Reads pretrained models of transformers: pinned, complete, without a notice, and with errors that say what to do."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from training.errors import BackboneError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS_SHOWN = 3
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError, HFValidationError)


@contextlib.contextmanager
def reading(source: str | Path, *, attention: str = "sdpa") -> Iterator[None]:
    """Translate the errors of ``from_pretrained`` and suppress its notices.

    Args:
        source: directory or hub id.
        attention: requested implementation of attention.

    Raises:
        BackboneError: the model cannot be read.
    """
    try:
        with quiet():
            yield
    except BackboneError:
        raise
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        todo = "give a directory written by save_pretrained or a hub id that can be reached from here"
        if isinstance(error, ImportError):
            todo = f'install what it needs for vlm.attention = "{attention}", or set vlm.attention = "sdpa"'
        raise BackboneError(f"{source}: the model cannot be loaded ({reason}); {todo}") from error


def check_pinned(source: str | Path, revision: str | None) -> None:
    """Require a commit for a hub id: a branch or tag can move to other weights between two runs.

    Args:
        source: directory or hub id.
        revision: of a hub id.

    Raises:
        BackboneError: there is no such directory, and the revision is not a commit.
    """
    if not Path(source).is_dir() and _COMMIT.fullmatch(revision or "") is None:
        raise BackboneError(
            f"{source}: there is no such directory, and a hub id must be pinned to a commit of 40 hexadecimal digits, "
            f"got {revision!r}; set vlm.revision to the commit that the model's page on the hub shows"
        )


def check_complete(source: str | Path, missing: Iterable[str]) -> None:
    """Refuse missing weights, which transformers would replace by random numbers with only a notice.

    Args:
        source: directory or hub id.
        missing: names of the weights that no file holds.

    Raises:
        BackboneError: there are any.
    """
    names = sorted(missing)
    if names:
        shown = ", ".join(names[:_WEIGHTS_SHOWN]) + (", …" if len(names) > _WEIGHTS_SHOWN else "")
        raise BackboneError(
            f"{source}: {len(names)} of the model's weights are in none of its files ({shown}); get the whole model"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the bars and notices of transformers; jobs show their own progress."""
    switch: Any = transformers_logging
    level, bars = switch.get_verbosity(), switch.is_progress_bar_enabled()
    switch.set_verbosity_error()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        switch.set_verbosity(level)
        if bars:
            switch.enable_progress_bar()
