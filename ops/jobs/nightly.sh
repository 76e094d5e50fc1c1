#!/bin/sh
# nightly.sh HH:MM COMMAND …: run the command every day at that time (UTC), until SIGTERM, which the command gets too.
set -u
at=$1
shift
child=
signal=KILL
stop() {
    trap '' TERM INT
    exec 2>/dev/null  # says "Killed"
    [ -n "$child" ] && kill -"$signal" "$child" && wait "$child"
    exit 0
}
trap stop TERM INT
while :; do
    now=$(date -u +%s)
    next=$(date -u -d "today $at" +%s) || exit 2
    [ "$next" -gt "$now" ] || next=$(date -u -d "tomorrow $at" +%s)
    echo "next run: $(date -u -d "@$next" +%Y-%m-%dT%H:%MZ)"
    # A child that was just forked still has the traps of this shell and may swallow SIGTERM before it is `sleep`.
    signal=KILL
    sleep $((next - now)) &
    child=$!
    wait "$child"
    signal=TERM
    "$@" &
    child=$!
    wait "$child"
    echo "ended with exit code $?"
    child=
done
