"""The nightly job starts by the clock of the machine, once for each day, however the clock and the waiting differ."""

import subprocess
from pathlib import Path

import pytest

NIGHTLY = Path(__file__).parents[2] / "ops" / "jobs" / "nightly.sh"
DAY = 86_400
NIGHT = 1_790_000_000 // DAY * DAY + 2 * 3600 + 15 * 60  # 02:15 UTC

DATE = """#!/bin/sh
case "$*" in
    "-u +%s") read -r now < "$CLOCK"; echo "$now" ;;
    *) exec {date} "$@" ;;
esac
"""
SLEEP = """#!/bin/sh
read -r now < "$CLOCK"
if [ -n "$WAKES_AT" ] && [ ! -e "$CLOCK.set" ]; then
    echo "$WAKES_AT" > "$CLOCK"
    : > "$CLOCK.set"
else
    echo $((now + ($1 * PASSES + 99) / 100)) > "$CLOCK"
fi
"""
JOB = """#!/bin/sh
read -r now < "$CLOCK"
echo "$now" >> "$STARTS"
if [ -n "$SET_BACK" ]; then echo $((now - SET_BACK)) > "$CLOCK"; fi
if [ "$(wc -l < "$STARTS")" -ge 2 ]; then kill -TERM "$PPID"; fi
"""


def starts(
    tmp_path: Path, now: int, *, passes: int = 100, set_back: str = "", wakes_at: int | None = None
) -> list[int]:
    """When two runs start.

    Args:
        tmp_path: an empty directory.
        now: Unix seconds at the beginning.
        passes: seconds that the clock goes on during a sleep of 100.
        set_back: seconds by which the clock is set back during each run.
        wakes_at: what the clock shows after the first sleep, instead of what passed.
    """
    (tmp_path / "bin").mkdir()
    for name, text in {"sleep": SLEEP, "job": JOB}.items():
        (tmp_path / "bin" / name).write_text(text)
    real = subprocess.run(["sh", "-c", "command -v date"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "bin" / "date").write_text(DATE.replace("{date}", real))
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    clock = tmp_path / "clock"
    clock.write_text(f"{now}\n")
    names: dict[str, object] = {"CLOCK": clock, "STARTS": tmp_path / "starts", "PASSES": passes, "SET_BACK": set_back}
    names["WAKES_AT"] = "" if wakes_at is None else wakes_at
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"} | {name: str(value) for name, value in names.items()}
    ended = subprocess.run(
        ["sh", NIGHTLY, "02:15", "job"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return [int(line) for line in (tmp_path / "starts").read_text().split()]


@pytest.mark.parametrize("passes", [100, 99, 101], ids=["equal", "the clock is slower", "the clock is faster"])
def test_each_night_has_one_start_at_its_time(passes: int, tmp_path: Path) -> None:
    """A sleep of a day that ends a moment early would start the job twice."""
    found = starts(tmp_path, NIGHT - 600, passes=passes)
    late = [start - NIGHT - number * DAY for number, start in enumerate(found)]
    assert all(0 <= seconds <= 20 for seconds in late), late


def test_a_clock_that_is_set_back_during_the_run_starts_no_second_one(tmp_path: Path) -> None:
    found = starts(tmp_path, NIGHT - 600, set_back="30")
    assert [start // DAY for start in found] == [NIGHT // DAY + number for number in range(2)]


def test_a_clock_that_jumps_over_the_time_starts_the_job_at_once(tmp_path: Path) -> None:
    """As after the machine was suspended."""
    found = starts(tmp_path, NIGHT - 3600, wakes_at=NIGHT + 2 * 3600)
    assert found == [NIGHT + 2 * 3600, NIGHT + DAY]


def test_a_clock_that_was_days_ahead_is_followed(tmp_path: Path) -> None:
    found = starts(tmp_path, NIGHT + 40 * DAY, wakes_at=NIGHT - 3600)
    assert found == [NIGHT, NIGHT + DAY]


def test_at_the_time_itself_the_next_night_is_meant(tmp_path: Path) -> None:
    assert starts(tmp_path, NIGHT)[0] == NIGHT + DAY
