#!/bin/sh
# pack.sh REGISTRY: pack the current bundle of a registry as the demo bundle of `docker compose up`. See `make demo-bundle`.
set -eu
registry=$1 here=$(dirname "$0")
id=$(sed -n 's/^ *"current": "\([0-9TZ]*-[0-9a-f]*\)".*/\1/p' "$registry/pointer.json")
[ -n "$id" ] || { echo "$registry: nothing is published; run \`vlm2rec demo\` first" >&2; exit 1; }
# The same bytes from the same bundle: no names, owners and times of this machine.
tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@0 \
    --transform "s,^$id,bundle," -C "$registry" -cf - "$id" | gzip -9n > "$here/bundle.tar.gz"
size=$(wc -c < "$here/bundle.tar.gz")
echo "$here/bundle.tar.gz: bundle $id, $size bytes"
[ "$size" -le 5000000 ] || { echo "above 5 MB; it is part of every clone" >&2; exit 1; }
