#!/usr/bin/env bash
# Latency of /healthz while pictures are drawn on every core: no request may wait on the engine.
# Usage: scripts/bench-health.sh [SECONDS]; needs wrk (`apt install wrk`).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
command -v wrk >/dev/null || { echo "wrk is missing: apt install wrk" >&2; exit 1; }

# shellcheck source=scripts/with-platform.sh
. scripts/with-platform.sh
load() { wrk --threads 1 --connections 16 --duration "${seconds}s" --latency "$INKSTONE_URL/healthz" | grep -E '50%|90%|99%|requests in|Requests/sec|Socket'; }

echo "idle:"
load
for _ in 1 2 3; do
  "$CARGO_TARGET_DIR/debug/inkstone" generate "a 3d cat" --steps 100 -n 10 -o "$data/cat.png" >/dev/null &
done
sleep 2
echo "while pictures are drawn:"
load
"$CARGO_TARGET_DIR/debug/inkstone" generate "a 3d dog" --steps 4 -o "$data/dog.png" && echo "and pictures were drawn meanwhile"
