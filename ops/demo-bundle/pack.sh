#!/bin/sh
# pack.sh REGISTRY: pack the newest bundle of a registry as the demo bundle of `docker compose up`. See `make demo-bundle`.
set -eu
registry=$1 here=$(dirname "$0")
id=$(ls "$registry" | grep -E '^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}$' | sort | tail -n 1)
# The same bytes from the same bundle: no names, owners and times of this machine.
tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@0 \
    --transform "s,^$id,bundle," -C "$registry" -cf - "$id" | gzip -9n > "$here/bundle.tar.gz"
size=$(wc -c < "$here/bundle.tar.gz")
echo "$here/bundle.tar.gz: bundle $id, $size bytes"
[ "$size" -le 5000000 ] || { echo "above 5 MB; it is part of every clone" >&2; exit 1; }
