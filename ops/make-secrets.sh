#!/bin/sh
# Make secrets/ for docker-compose.secrets.yml: two keys and two Redis users. Existing files are kept.
set -eu
cd "$(dirname "$0")/.."
mkdir -p -m 0755 secrets
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
for name in api-keys admin-keys; do
    [ -e "secrets/$name" ] || random > "secrets/$name"
done
if [ ! -e secrets/redis-users ]; then
    password=$(random)
    printf '%s\n' "redis://vlm2rec:$password@redis:6379/0" > secrets/redis-url
    # Nobody logs in as `default`; it keeps its rights because Redis reads its append-only file as that user: without them it
    # skips every transaction in it, and the events are gone.
    {
        printf '%s\n' "user default off ~* &* +@all"
        while read -r line; do
            case $line in
                "user vlm2rec on >PASSWORD "*) printf '%s\n' "user vlm2rec on >$password ${line#*PASSWORD }" ;;
            esac
        done < docs/security.md
    } > secrets/redis-users
fi
# Files of an earlier version lack it. Redis knows the user from its next start on. The file may lack its last line end, or
# have the user without its URL.
if [ ! -e secrets/redis-backup-url ]; then
    password=$(random)
    {
        while read -r line || [ -n "$line" ]; do
            case $line in "user backup "*) ;; *) printf '%s\n' "$line" ;; esac
        done < secrets/redis-users
        while read -r line; do
            case $line in
                "user backup on >PASSWORD "*) printf '%s\n' "user backup on >$password ${line#*PASSWORD }" ;;
            esac
        done < docs/backup.md
    } > secrets/redis-users.new
    mv secrets/redis-users.new secrets/redis-users
    printf '%s\n' "redis://backup:$password@redis:6379/0" > secrets/redis-backup-url
fi
# The services are other users than the one who makes these files; keep the directory above to yourself.
chmod 0644 secrets/*
echo "secrets/: api-keys, admin-keys, redis-url, redis-backup-url, redis-users"
