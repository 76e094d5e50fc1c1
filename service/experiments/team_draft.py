"""Merges the rankings of two arms by team draft, so that one answer compares both.

F. Radlinski, M. Kurup, T. Joachims, "How Does Clickthrough Data Reflect Retrieval Quality?", CIKM 2008: the arm with
fewer items picks next, a coin decides where both have as many, and the arm adds its best item that is not taken yet.
An item belongs to the arm that picked it, and so does a click on it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final, NamedTuple

_SEPARATOR: Final = "\x1f"  # ids have no control characters
_MOST_KEY_BYTES: Final = 64


class Pick(NamedTuple):
    """An item of a merged ranking.

    Attributes:
        team: 0 or 1, the arm that picked it.
        place: of the item in the ranking of that arm, counted from 0.
    """

    team: int
    place: int


def team_draft(
    rankings: tuple[Sequence[str], Sequence[str]],
    length: int,
    coins: Iterator[int],
    new: tuple[Sequence[bool], Sequence[bool]] | None = None,
    kept_places: Callable[[int], int] = lambda _: 0,
) -> list[Pick]:
    """Merge two rankings.

    Args:
        rankings: item ids, best first; an item may be in both, but not twice in one.
        length: items wanted.
        coins: 0 or 1, which arm picks where both have as many items.
        new: whether each item of each ranking is new; None: none is.
        kept_places: how many of the first n places are kept for new items. Where fewer were picked, the arm picks the
            best new one among the first n items of its ranking, if any is left there.

    Returns:
        The first ``length`` items, fewer where both rankings end; no item twice. The first n of them depend on the
        first n of each ranking alone. After one ranking has ended the other one picks.
    """
    taken: set[str] = set()
    picks: list[Pick] = []
    sizes, places, fresh = [0, 0], [0, 0], 0
    while len(picks) < length:
        for team, ranking in enumerate(rankings):
            while places[team] < len(ranking) and ranking[places[team]] in taken:
                places[team] += 1
        left = [team for team in (0, 1) if places[team] < len(rankings[team])]
        if not left:
            break
        turn = next(coins) if sizes[0] == sizes[1] else int(sizes[1] < sizes[0])
        team = turn if turn in left else left[0]
        place, position = places[team], len(picks) + 1
        if new is not None and fresh < kept_places(position):
            first = range(place, min(position, len(rankings[team])))
            place = next((one for one in first if new[team][one] and rankings[team][one] not in taken), place)
        taken.add(rankings[team][place])
        picks.append(Pick(team, place))
        sizes[team] += 1
        fresh += new is not None and new[team][place]
    return picks


def coins_of(salt: str, owner: str, first_items: Sequence[str]) -> Iterator[int]:
    """Coins that are the same whenever the same user gets the same rankings, on every page and every replica.

    Args:
        salt: of the experiment.
        owner: the user or session.
        first_items: the best item of each ranking, so that a user whose history changes gets other coins.
    """
    unit, key = _SEPARATOR.join((owner, *first_items)).encode(), salt.encode()[:_MOST_KEY_BYTES]
    for block in count():
        digest = hashlib.blake2b(unit + block.to_bytes(2), key=key, person=b"team-draft").digest()
        for byte in digest:
            for bit in range(8):
                yield byte >> bit & 1
