#!/usr/bin/env bash
# Tries docker-compose.yml for real, in a clean checkout, and says what held: what is up, an answer over HTTP, events over a
# restart, every container and a worker killed once, Prometheus' targets, two replicas, training, a re-index job and the swap
# that follows, a backup and its restore.
#
#   ops/try-compose.sh [--without-grafana] [--build]
#
# Uses the images by the names in docker-compose.yml as they are; --build builds those of this project first. Wheels in wheels/
# are taken along. Everything gets a project name and ports of its own and is removed at the end. About five minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD services=(redis service prometheus grafana) build=
for option in "$@"; do
    case $option in
        --without-grafana) services=(redis service prometheus) ;;
        --build) build=1 ;;
        *) echo "usage: $0 [--without-grafana] [--build]" >&2; exit 2 ;;
    esac
done
compose() { docker-compose --project-name vlm2rec-try "$@"; }
command -v docker-compose >/dev/null || compose() { docker compose --project-name vlm2rec-try "$@"; }
export PUBLISH_PORT=${PUBLISH_PORT:-18000-18001}
url=http://127.0.0.1:${PUBLISH_PORT%-*}
work=$(mktemp -d)
trap 'cd "$work/vlm2rec" 2>/dev/null && compose --profile jobs down --volumes --timeout 5 >/dev/null 2>&1; rm -rf "$work"' EXIT

started=$SECONDS
held() { printf 'ok   %4d s  %s\n' $((SECONDS - started)) "$*"; }
fail() { echo "FAIL $*" >&2; compose ps >&2; compose logs --no-color --tail 10 >&2; exit 1; }
until_true() { # until_true SECONDS WHAT COMMAND…
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || fail "$what"
        sleep 0.5
    done
    held "$what"
}
ask() { curl -sS --fail-with-body --max-time 10 "$@"; }
post() { ask "$url$1" -H 'content-type: application/json' -d "$2"; }
field() { python3 -c 'import json, sys; print(eval("answer" + sys.argv[1], {"answer": json.load(sys.stdin), "len": len}))' "$1"; }
inside() { compose exec -T prometheus promtool query instant http://127.0.0.1:9090 "$1"; }
remembers() { [ "$(ask "$url/users/try/history" | field '["items"].__len__()')" = "$1" ]; }
serves() { [ "$(ask "$url/bundle" | field '["bundle"]')" = "$1" ]; }
targets_up() { inside 'sum(up{job="vlm2rec"})' | grep -q "=> $1 "; }
ready() { ask "$url/readyz"; }

git clone --quiet "$source" "$work/vlm2rec"
find wheels -name '*.whl' -exec cp {} "$work/vlm2rec/wheels/" \;
cd "$work/vlm2rec"
held "a clean checkout of $(git rev-parse --short HEAD)"
if [ -n "$build" ]; then
    compose --profile jobs build --quiet >/dev/null
    held "images built"
fi

[ -z "$(compose --profile jobs config -q 2>&1)" ] || fail "the files give a warning"
held "the files give no warning"

up=$SECONDS
PUBLISH_PORT=${PUBLISH_PORT%-*} compose up -d "${services[@]}" >/dev/null 2>&1 || fail "up"
until_true 60 "ready" ready
held "from up to ready: $((SECONDS - up)) s"
demo=$(ask "$url/bundle" | field '["bundle"]')
item=$(post /recommend '{"user_id": "nobody", "k": 1}' | field '["items"][0]["item_id"]')
[ "$(post /recommend "{\"items\": [\"$item\"], \"k\": 5, \"explain\": true}" | field '["items"].__len__()')" = 5 ] || fail "recommend"
held "the demo bundle $demo answers with five items"
post /events "{\"events\": [{\"user_id\": \"try\", \"item_id\": \"$item\", \"event_id\": \"1\"}]}" >/dev/null
until_true 5 "an event is in the history" remembers 1
compose restart >/dev/null 2>&1
until_true 60 "ready after a restart of everything" ready
until_true 10 "the event is still there" remembers 1
until_true 60 "Prometheus scrapes the service" targets_up 1
[ "$(compose exec -T service id -u)" = 10001 ] || fail "not root"
! compose exec -T service sh -c 'echo x > /opt/vlm2rec/x' 2>/dev/null || fail "the root is read-only"
! compose exec -T service python -c 'import torch' 2>/dev/null || fail "no torch"
held "the service is not root, writes nowhere, has no torch"

for name in "${services[@]}"; do
    container=$(compose ps -q "$name")
    before=$(docker inspect --format '{{.State.StartedAt}}' "$container")
    # From inside, as a crash: `docker kill` counts as a stop that was asked for, after which nothing is started again.
    kill -KILL "$(docker inspect --format '{{.State.Pid}}' "$container")"
    restarted() {
        [ "$(docker inspect --format '{{.State.Running}}' "$container")" = true ] &&
            [ "$(docker inspect --format '{{.State.StartedAt}}' "$container")" != "$before" ]
    }
    until_true 30 "$name killed: started again" restarted
    until_true 30 "$name killed: the service is ready" ready
    until_true 30 "$name killed: the event is there" remembers 1
done
until_true 60 "Prometheus scrapes the service again" targets_up 1
# A worker, where there are several.
service=$(compose ps -q service)
workers() { docker top "$service" -o pid,ppid | awk -v parent="$(docker inspect --format '{{.State.Pid}}' "$service")" '$2 == parent { print $1 }'; }
before=$(workers)
if [ -n "$before" ]; then
    worker=${before%%$'\n'*}
    kill -KILL "$worker"
    replaced() { ! workers | grep -qx "$worker" && [ "$(workers | wc -l)" = "$(wc -l <<<"$before")" ]; }
    until_true 30 "a worker killed: replaced" replaced
    until_true 30 "a worker killed: the service is ready" ready
fi

# A service that is down altogether is an alert.
compose stop service >/dev/null 2>&1
down() { inside 'ALERTS{alertname="Vlm2recDown",alertstate="firing"}' | grep -q Vlm2recDown; }
until_true 120 "the service stopped: the alert Vlm2recDown fires" down
PUBLISH_PORT=${PUBLISH_PORT%-*} compose up -d service >/dev/null 2>&1
until_true 60 "ready again" ready

# Two replicas.
compose rm -sf service >/dev/null 2>&1 && compose up -d --scale service=2 service >/dev/null 2>&1 || fail "two replicas"
until_true 60 "two replicas are scraped" targets_up 2
for port in ${PUBLISH_PORT/-/ }; do
    url=http://127.0.0.1:$port
    until_true 30 "the replica on its own port knows the event" remembers 1
done
url=http://127.0.0.1:${PUBLISH_PORT%-*}

# Training on a small catalogue of its own, then a nightly job on a changed one; both replicas swap.
job() { compose --profile jobs run --rm -T "$@" 2>>"$work/jobs.log"; }
job --entrypoint vlm2rec train data make-demo data/demo --items 60 --users 300 --evaluation-users 100 >/dev/null || fail "make-demo"
job --entrypoint sh train -c 'printf "[train]\nsteps = 20\n[encoder]\nepochs = 2\n" > data/tiny.toml'
export DATA=demo CONFIG=/var/lib/vlm2rec/data/tiny.toml INDEX_ARGS="--bound served_quality=0" # nearly untrained, on purpose
job train >"$work/jobs.log" || { tail -30 "$work/jobs.log" >&2; fail "train"; }
held "trained and published"
trained=$(job --entrypoint sh train -c 'ls bundles | grep -E "^[0-9T]+Z-[0-9a-f]{6}$" | sort | tail -1' | tr -d '\r')
[ "$trained" != "$demo" ] || fail "nothing was published"
for port in ${PUBLISH_PORT/-/ }; do
    url=http://127.0.0.1:$port
    until_true 30 "trained; a replica swapped to $trained" serves "$trained"
done
job --entrypoint sed train -i '2s/The /This /' data/demo/items.csv
job reindex >"$work/reindex.log" || { tail -30 "$work/jobs.log" >&2; fail "reindex"; }
held "$(tail -n 1 "$work/reindex.log" | tr -d '\r')"
changed=$(job --entrypoint sh train -c 'ls bundles | grep -E "^[0-9T]+Z-[0-9a-f]{6}$" | sort | tail -1' | tr -d '\r')
[ "$changed" != "$trained" ] || fail "the job published nothing"
for port in ${PUBLISH_PORT/-/ }; do
    url=http://127.0.0.1:$port
    until_true 30 "re-indexed; a replica swapped to $changed" serves "$changed"
done
[ "$(ask "$url/users/try/history" | field '["items"].__len__()')" = 1 ] || fail "the event is gone"

# A backup, an event after it, and back to the backup.
backup() { job backup "$@" >"$work/backup.log" || { tail -5 "$work/jobs.log" >&2; fail "backup $1"; }; }
backup create --to first
item=$(post /recommend '{"user_id": "nobody", "k": 1}' | field '["items"][0]["item_id"]')
post /events "{\"events\": [{\"user_id\": \"try\", \"item_id\": \"$item\", \"event_id\": \"2\"}]}" >/dev/null
until_true 5 "backed up; another event is in the history" remembers 2
compose rm --stop --force -v service >/dev/null 2>&1
backup restore --from first --replace
PUBLISH_PORT=${PUBLISH_PORT%-*} compose up -d service >/dev/null 2>&1
url=http://127.0.0.1:${PUBLISH_PORT%-*}
until_true 60 "restored: ready" ready
until_true 10 "restored: the event after the backup is gone" remembers 1
until_true 10 "restored: $changed answers" serves "$changed"

# With keys and a Redis that asks for a password.
sh ops/make-secrets.sh >/dev/null
key=$(cat secrets/api-keys)
PUBLISH_PORT=${PUBLISH_PORT%-*} compose -f docker-compose.yml -f docker-compose.secrets.yml up -d redis service >/dev/null 2>&1 || fail "keys"
url=http://127.0.0.1:${PUBLISH_PORT%-*}
until_true 60 "ready with keys" ready
[ "$(curl -s -o "$work/refused" -w '%{http_code}' "$url/users/try/history")" = 401 ] || fail "no key is refused"
[ "$(ask -H "X-API-Key: $key" "$url/users/try/history" | field '["items"].__len__()')" = 1 ] || fail "the history with a key"
compose exec -T redis redis-cli get x 2>/dev/null | grep -q NOAUTH || fail "Redis asks for a password"
held "without a key 401, with it the event; Redis asks for a password"
compose -f docker-compose.yml -f docker-compose.secrets.yml --profile jobs run --rm -T backup create --to second \
    >"$work/backup.log" 2>>"$work/jobs.log" || { tail -5 "$work/jobs.log" >&2; fail "a backup with a password"; }
held "a backup as a Redis user of its own"
held "all of it"
