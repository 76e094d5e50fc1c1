"""How long events wait for their export, also while Redis numbers them ahead of the time."""

from collections.abc import Sequence
from time import monotonic, time

from index.event_export.stream_ids import StreamId
from service.stores.event_export.redis_event_export import Waiting


class WaitingAges:
    """The age of the oldest entry of each bucket, in one process.

    Stream ids never decrease. After the clock of Redis was ahead and put right, new entries get ids of the future until
    the time has reached them, so an id alone would make an entry young for that long. Therefore a bucket is at least as
    old as the time since which this process has seen entries wait behind the same exported id. The oldest entry does
    not count for that: in a full stream it is another one every moment.
    """

    def __init__(self) -> None:
        self._since: dict[int, tuple[str | None, float]] = {}  # exported id, monotonic seconds

    def seconds(self, waiting: Sequence[Waiting]) -> list[float | None]:
        """Ages of the oldest entries.

        Args:
            waiting: what is not exported, for each bucket.

        Returns:
            For each bucket seconds, at least 0; None if no entry waits.
        """
        return [self._seconds(bucket, part) for bucket, part in enumerate(waiting)]

    def _seconds(self, bucket: int, part: Waiting) -> float | None:
        if part.oldest is None:
            self._since.pop(bucket, None)
            return None
        exported, since = self._since.get(bucket, (None, 0.0))
        if bucket not in self._since or exported != part.exported:
            since = monotonic()
            self._since[bucket] = part.exported, since
        return max(time() - StreamId.parse(part.oldest).milliseconds / 1000, monotonic() - since)
