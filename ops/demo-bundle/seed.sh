#!/bin/sh
# Publish the demo bundle if the registry has no bundle.
set -eu
if [ -e "$VLM2REC_REGISTRY/pointer.json" ]; then
    echo "a bundle is published already; the demo bundle is not published"
    exit 0
fi
python3 -m tarfile -e /demo/bundle.tar.gz /tmp
exec vlm2rec index publish /tmp/bundle --registry "$VLM2REC_REGISTRY"
