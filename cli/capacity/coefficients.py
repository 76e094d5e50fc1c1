"""Reads the coefficients of `vlm2rec plan`: a value, its unit, where it comes from and when."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli.errors import CapacityError

Basis = Literal["measured", "computed", "guess"]
FigureBasis = Literal["computed from measured", "computed", "guess"]
"""Of a figure of an estimate: it is a formula of coefficients, so it is never measured itself."""


class Coefficient(BaseModel):
    """One figure that estimates are made of.

    Attributes:
        value: in `unit`; 1e-18 to 1e18, so that products and quotients of a few stay finite.
        basis: measured by `command`, computed from sizes or a data sheet, or a guess.
        source: the file, page or reason that it is taken from.
        date: ISO date of the measurement or of the guess.
        command: measures it again; None if it is not measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(ge=1e-18, le=1e18, allow_inf_nan=False)
    unit: str = Field(min_length=1)
    basis: Basis
    source: str = Field(min_length=1)
    date: str = Field(pattern=r"\d{4}-\d\d-\d\d")
    command: str | None = None


class Coefficients(Mapping[str, Coefficient]):
    """All coefficients by name.

    Args:
        found: the coefficients of a file.
    """

    def __init__(self, found: Mapping[str, Coefficient]) -> None:
        self._found = dict(found)

    def __getitem__(self, name: str) -> Coefficient:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def value(self, name: str) -> float:
        """The value of a coefficient, in its unit."""
        return self._found[name].value

    def basis(self, names: Iterable[str], *, simple: bool = True) -> FigureBasis:
        """The basis of a figure: it is as good as the worst coefficient that it is made of.

        Args:
            names: of all its coefficients.
            simple: False for a result of the simulation, or beyond what was measured.
        """
        found = {self._found[name].basis for name in names}
        if "guess" in found:
            return "guess"
        return "computed from measured" if simple and found == {"measured"} else "computed"

    @classmethod
    def read(cls, override: Path | None = None) -> "Coefficients":
        """The coefficients of this package, some of them replaced by those of a file.

        Raises:
            CapacityError: the file cannot be read, or an entry is unknown or breaks a rule.
        """
        own = tomllib.loads((files("cli.capacity") / "coefficients.toml").read_text("utf-8"))
        given = {} if override is None else _table(override)
        if unknown := sorted(set(given) - set(own)):
            raise CapacityError(f"{override}: {unknown[0]} is not a coefficient; known are {', '.join(sorted(own))}")
        found = {}
        for name, entry in {**own, **given}.items():
            try:
                found[name] = Coefficient.model_validate(entry)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                field = ".".join([name, *map(str, problem["loc"])])
                raise CapacityError(f"{override}: {field}: {problem['msg']}, got {problem['input']!r:.80}") from None
        return cls(found)


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CapacityError(f"{file}: the coefficients cannot be read: {error}") from error
