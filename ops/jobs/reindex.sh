#!/bin/sh
# Bring the published bundle up to date with the data set. RUN: name of the run; KEEP: bundles that are kept (default 7).
set -eu
exec vlm2rec reindex /var/lib/vlm2rec/data --run "/var/lib/vlm2rec/runs/${RUN:-main}" \
    --registry /var/lib/vlm2rec/bundles --keep "${KEEP:-7}" "$@"
