"""BoundCheck: one figure of a bundle beside its bound."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BoundCheck:
    """One figure beside its bound.

    Attributes:
        bound: name of the bound.
        figure: name of the figure; the bound's own where it was not measured.
        value: the figure, None where it was not measured.
        limit: the bound.
        at_least: whether the figure must be at least the limit, else at most.
    """

    bound: str
    figure: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def held(self) -> bool:
        """Whether the figure keeps to its bound; never without a figure."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.6g}"
        return f"{self.figure} {value} (must be {'at least' if self.at_least else 'at most'} {self.limit:g})"
