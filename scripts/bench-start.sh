#!/usr/bin/env bash
# From the start of a process to its first step, and its memory: the demo model, and one of SDXL's size and random weights.
# Usage: scripts/bench-start.sh [--folder DIR] [--keep] [--side PIXELS]
#   --folder  where the random model is written, 7 GB (default .tools/scratch/random-sdxl); one that is there is used as it is
#   --keep    leave it there
#   --side    of the pictures (default 256)
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.tools/scratch/random-sdxl keep=no side=256
while [ $# -gt 0 ]; do
  case $1 in
    --folder) folder=$2; shift ;;
    --keep) keep=yes ;;
    --side) side=$2; shift ;;
    *) sed -n 's/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

if [ -z "${INKSTONE_EXAMPLES:-}" ]; then
  cargo build --quiet --workspace --example start --example random_model
  INKSTONE_EXAMPLES=${CARGO_TARGET_DIR:-target}/debug/examples
fi
start() { "$INKSTONE_EXAMPLES/start" "$1" "$side" "$2" "$(date +%s%N)"; }

for residency in packed mapped; do
  echo "demo model, $residency:"
  start assets/models/inkstone-demo "$residency"
done

if [ ! -e "$folder/complete" ]; then
  # Whatever else is there is somebody's own.
  [ -z "$(ls -A "$folder" 2>/dev/null)" ] || { echo "$folder is not empty" >&2; exit 1; }
  free=$(df --output=avail -k "$(mkdir -p "$folder" && echo "$folder")" | tail -1)
  [ "$free" -gt 8000000 ] || { echo "$folder needs 7 GB; $((free / 1000000)) GB are free" >&2; exit 1; }
  [ "$keep" = yes ] || trap 'rm -rf "$folder"' EXIT
  "$INKSTONE_EXAMPLES/random_model" "$folder"
  touch "$folder/complete"
fi
echo "a model of SDXL's size in f16, its files in the system's cache as far as that holds them:"
start "$folder" auto
