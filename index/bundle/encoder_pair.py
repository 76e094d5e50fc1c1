"""Records the two encoders of a refitted bundle: the one that serves and the one that was measured."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import IndexSpecError

HASH_DIGITS = 16

_Hash = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{HASH_DIGITS}}}$")]


class EncoderPair(BaseModel):
    """The encoder that serves, fitted on every event, with the one that every accuracy figure is of.

    Both are named by the first 16 hexadecimal digits of the sha256 of their ``encoder.onnx``.

    Attributes:
        served: the encoder of the bundle.
        measured: the encoder fitted by the same recipe without the held-out events; it is not in the bundle.
        served_was_measured: always false; it says so to readers of the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    served: _Hash
    measured: _Hash
    served_was_measured: Literal[False] = False

    @classmethod
    def of_items(cls, model: Mapping[str, Any]) -> "EncoderPair | None":
        """The pair that the provenance of an item table names; None if its encoder was not refitted.

        Args:
            model: provenance; ``encoder`` has ``hash`` and, after a refit, ``measured``.

        Raises:
            IndexSpecError: a hash has another form.
        """
        encoder = model.get("encoder")
        if not isinstance(encoder, Mapping) or "measured" not in encoder:
            return None
        try:
            return cls.model_validate({"served": encoder.get("hash"), "measured": encoder["measured"]})
        except ValidationError as error:
            raise IndexSpecError(
                f"the item table names the encoders {encoder.get('hash')!r} and {encoder['measured']!r}; both must be "
                f"{HASH_DIGITS} hexadecimal digits; fit the encoder again"
            ) from error

    def check_served(self, encoder: Path) -> None:
        """Check that an encoder is the one that serves.

        Args:
            encoder: path of ``encoder.onnx``.

        Raises:
            IndexSpecError: it is another one.
        """
        self._check("was refitted together with the encoder", self.served, encoder)

    def check_measured(self, encoder: Path) -> None:
        """Check that an encoder is the one that was measured.

        Args:
            encoder: path of ``encoder.onnx``.

        Raises:
            IndexSpecError: it is another one.
        """
        self._check("was refitted by the recipe of the encoder", self.measured, encoder)

    def _check(self, what: str, expected: str, encoder: Path) -> None:
        found = encoder_hash(encoder)
        if found != expected:
            raise IndexSpecError(
                f"{encoder}: the item table {what} {expected!r}, this is {found!r}; a measured encoder and its refit "
                "belong together, so fit the encoder again"
            )


def check_refit(refit: EncoderPair | None, model: Mapping[str, Any], encoder_sha256: str) -> None:
    """Check that a manifest's pair is that of its items and of its encoder.

    Args:
        refit: of the manifest.
        model: provenance of the items.
        encoder_sha256: of the bundle's ``encoder.onnx``.

    Raises:
        ValueError: they differ.
    """
    try:
        named = EncoderPair.of_items(model)
    except IndexSpecError as error:
        raise ValueError(str(error)) from error
    if refit != named:
        raise ValueError("refit must name the served and the measured encoder of the items (model.encoder)")
    if refit is not None and not encoder_sha256.startswith(refit.served):
        raise ValueError(f"refit.served must be the hash of encoder.onnx ({encoder_sha256}), got {refit.served}")


def encoder_hash(encoder: Path) -> str:
    """The first 16 hexadecimal digits of the sha256 of an ``encoder.onnx``.

    Args:
        encoder: its path.
    """
    return hashlib.sha256(encoder.read_bytes()).hexdigest()[:HASH_DIGITS]
