#!/bin/sh
# nightly.sh HH:MM COMMAND …: run the command every day at that time (UTC), until SIGTERM, which the command gets too.
#
# The clock is read again at least every half hour: a sleep of hours may end early or late, and a clock may be set. A time
# that has started the command starts it once, also where the clock is set back afterwards.
set -u
day=86400 longest_sleep=1800
at=$1
shift
at_second=$(date -u -d "1970-01-01 $at" +%s) || exit 2
child=
signal=KILL
started=0
stop() {
    trap '' TERM INT
    exec 2>/dev/null  # says "Killed"
    [ -n "$child" ] && kill -"$signal" "$child" && wait "$child"
    exit 0
}
trap stop TERM INT
while :; do
    now=$(date -u +%s)
    next=$((now - now % day + at_second))
    [ "$next" -gt "$now" ] || next=$((next + day))
    [ "$next" -ne "$started" ] || next=$((next + day))
    echo "next run: $(date -u -d "@$next" +%Y-%m-%dT%H:%MZ)"
    # After a clock was set back, the next time is no more than two days away.
    while [ "$now" -lt "$next" ] && [ $((next - now)) -le $((2 * day)) ]; do
        left=$((next - now))
        [ "$left" -le "$longest_sleep" ] || left=$longest_sleep
        # A child that was just forked still has the traps of this shell and may swallow SIGTERM before it is `sleep`.
        signal=KILL
        sleep "$left" &
        child=$!
        wait "$child"
        child=
        now=$(date -u +%s)
    done
    [ "$now" -ge "$next" ] || continue
    started=$next
    signal=TERM
    "$@" &
    child=$!
    wait "$child"
    echo "ended with exit code $?"
    child=
done
