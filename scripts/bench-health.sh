#!/usr/bin/env bash
# Latency of /healthz while pictures are drawn on every core: no request may wait on the engine.
# Usage: scripts/bench-health.sh [SECONDS]; needs hey (`apt install hey`).
# An open rate that leaves the processor to the engine: 1000 requests a second over 20 connections.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
command -v hey >/dev/null || { echo "hey is missing: apt install hey" >&2; exit 1; }

# shellcheck source=scripts/with-platform.sh
. scripts/with-platform.sh
load() { hey -z "${seconds}s" -c 20 -q 50 "$INKSTONE_URL/healthz" | grep -E 'Requests/sec|Slowest|50%|95%|99%|\[[0-9]+\]'; }

echo "idle:"
load
for _ in 1 2 3; do
  "$CARGO_TARGET_DIR/debug/inkstone" generate "a 3d cat" --steps 100 -n 10 -o "$data/cat.png" >/dev/null &
done
sleep 2
echo "while pictures are drawn:"
load
"$CARGO_TARGET_DIR/debug/inkstone" generate "a 3d dog" --steps 4 -o "$data/dog.png" && echo "and pictures were drawn meanwhile"
