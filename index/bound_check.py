"""Compares one measured figure of a bundle with its bound."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BoundCheck:
    """A figure and the bound that it must keep.

    Attributes:
        bound: name of the bound.
        figure: name of the figure; the bound's name if the figure was not measured.
        value: the figure; None if it was not measured.
        limit: value of the bound.
        at_least: True if the figure must be at least the limit, False if at most.
    """

    bound: str
    figure: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def passed(self) -> bool:
        """Whether the figure keeps its bound; False if the figure was not measured."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.6g}"
        return f"{self.figure} {value} (must be {'at least' if self.at_least else 'at most'} {self.limit:g})"
