"""Defines the sizes, rates and durations of the serving bench."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingPlan:
    """Sizes, rates and durations of a run.

    Attributes:
        sizes: items of the catalogues, ascending; peers and overload are measured on ``main``.
        main: the size on which everybody is measured.
        rounds: how often everything is measured, in turn (A B C A B C …), because the machine is noisy.
        tuning_rounds: how often each number of processes of each contender is tried before.
        overload_rounds: the same as ``rounds`` for the overload, whose targets hold in every round.
        tuning_s: seconds of closed-loop load of each try.
        connections: of the closed loop.
        warm_s: seconds of closed-loop load before each contender is measured, not counted.
        closed_s: seconds of closed-loop load.
        open_s: seconds at each open-loop rate.
        rates: open-loop requests a second for vlm2rec on ``main``.
        echo_s: seconds of closed-loop load of the echo beside each round of the later stages.
        peer_rates: the same for peers, fewer to save time.
        size_rates: the same for vlm2rec on every size.
        overload_s: seconds of each overload.
        overloads: multiples of the measured peak that are offered, and of the connections.
        users: histories in Redis.
        many_users: histories in the other Redis, to see what more users cost.
        checked: users whose answers are held against exact search.
    """

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    main: int = 100_000
    rounds: int = 3
    tuning_rounds: int = 2
    overload_rounds: int = 5
    tuning_s: float = 4.0
    connections: int = 64
    warm_s: float = 2.0
    closed_s: float = 8.0
    open_s: float = 8.0
    echo_s: float = 4.0
    rates: tuple[int, ...] = (400, 500, 800, 1000)
    peer_rates: tuple[int, ...] = (500, 1000)
    size_rates: tuple[int, ...] = (400, 800)
    overload_s: float = 10.0
    overloads: tuple[int, ...] = (2, 5)
    users: int = 10_000
    many_users: int = 100_000
    checked: int = 200


SMOKE = ServingPlan(
    sizes=(1_000, 2_000, 4_000),
    main=2_000,
    rounds=1,
    tuning_rounds=1,
    overload_rounds=1,
    tuning_s=1.0,
    warm_s=1.0,
    closed_s=1.0,
    open_s=1.0,
    echo_s=1.0,
    rates=(50, 100),
    peer_rates=(50, 100),
    size_rates=(50,),
    overload_s=1.0,
    users=200,
    many_users=400,
    checked=20,
)
"""Seconds instead of minutes, to see that everything runs; its figures mean nothing."""
