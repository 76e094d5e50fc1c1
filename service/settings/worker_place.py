"""Says which of several worker processes this one is, and which part of each bound belongs to it.

A bound that limits what one event loop holds at once, such as connections, is divided: the parts of all workers sum to
the bound, the remainder goes to the first ones. A bound on a caller, such as its rate, is not: its requests may come
over any connection, so `service.access.buckets` counts them for all workers together (docs/adr/0030).
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class WorkerPlace(BaseModel):
    """The place of a process among the workers of one service.

    Attributes:
        number: of this worker, from 1 to ``count``.
        count: workers of the service.
        directory: with the files that the workers share; the parent process makes and removes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = Field(ge=1)
    count: int = Field(ge=1)
    directory: Path

    def part_of(self, total: int) -> int:
        """This worker's part of a bound; the parts of all workers sum to it."""
        return total // self.count + (self.number <= total % self.count)
