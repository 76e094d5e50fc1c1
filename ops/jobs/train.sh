#!/bin/sh
# Make a published bundle from a data set. After an interruption start it again: finished steps are kept.
#
# RUN: name of the run (default `main`). DATA: directory in the data volume, if the data set is not at its top. CONFIG: a
# TOML file for `train` and `fit-encoder`. TRAIN_ARGS, INDEX_ARGS: more options of `vlm2rec train` and of `index build`.
set -eu
data=/var/lib/vlm2rec/data/${DATA:-.} run=/var/lib/vlm2rec/runs/${RUN:-main}
config=${CONFIG:+--config $CONFIG}
vlm2rec data check "$data"
# shellcheck disable=SC2086  # words on purpose
vlm2rec train "$data" --run "$run" --resume $config ${TRAIN_ARGS:-}
vlm2rec embed "$data" --run "$run"
# shellcheck disable=SC2086
vlm2rec fit-encoder "$data" --run "$run" $config
vlm2rec evaluate "$data" --run "$run" --json "$run/evaluation.json"
# shellcheck disable=SC2086
exec vlm2rec index build --run "$run" --publish /var/lib/vlm2rec/bundles ${INDEX_ARGS:-}
