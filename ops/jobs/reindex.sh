#!/bin/sh
# Bring the published bundle up to date with the data set. RUN, DATA, INDEX_ARGS as for train.sh; KEEP: bundles that are kept
# (default 7).
set -eu
# shellcheck disable=SC2086  # words on purpose
exec vlm2rec reindex "/var/lib/vlm2rec/data/${DATA:-.}" --run "/var/lib/vlm2rec/runs/${RUN:-main}" \
    --registry /var/lib/vlm2rec/bundles --keep "${KEEP:-7}" ${INDEX_ARGS:-}
