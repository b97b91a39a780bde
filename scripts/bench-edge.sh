#!/usr/bin/env bash
# Durable submissions a second, and after them what mosec and litserve do with a request for nothing, in one run. They are started when ours is
# done: idle or not, they would take from the machine that we are measured on.
# Usage: scripts/bench-edge.sh [SECONDS], for each measurement (8). Takes about SECONDS × 25.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-8}
venv=.tools/bench-edge
log=.tools/bench-edge.log

# As it is shipped: measured with the profile of tests, which compiles our own crates quickly rather than well, it would be another program.
if [ ! -x "$CARGO_TARGET_DIR/release/inkstone-gateway" ]; then
  echo "first build with the release profile: a quarter of an hour or longer on two cores, with cargo's progress below"
fi
cargo build --release --workspace --bins --examples
if [ ! -f "$venv/.done" ]; then
  echo "installing mosec and litserve into $venv (once)"
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet mosec==0.9.8 litserve==0.2.19
  touch "$venv/.done"
fi

# No process interrupts another because it wakes up, ours and the peers alike (sched(7), SCHED_BATCH; docs/OPERATIONS.md, "Few processors").
run=(chrt --batch 0)

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
peers=()
# Each is a group of processes of its own, which goes as a whole.
trap 'for peer in "${peers[@]}"; do kill -- "-$peer" 2>/dev/null || true; done' EXIT
result=$(mktemp)
"${run[@]}" "$CARGO_TARGET_DIR/release/examples/bench_edge" --seconds "$seconds" --result "$result"
ours=$(cat "$result")
rm -f "$result"

mosec_port=$(free_port)
litserve_port=$(free_port)
start() { setsid "${run[@]}" "$@" >>"$log" 2>&1 & peers+=($!); }
: >"$log"
start "$venv/bin/python" scripts/bench/mosec_noop.py --address 127.0.0.1 --port "$mosec_port"
start "$venv/bin/python" scripts/bench/litserve_noop.py "$litserve_port"
wait_for() {
  for _ in $(seq 300); do
    if curl -s -o /dev/null -X POST -H 'Content-Type: application/json' -d '{}' "$1"; then return; fi
    sleep 0.1
  done
  echo "nothing answers at $1; see $log" >&2
  exit 1
}
wait_for "http://127.0.0.1:$mosec_port/inference"
wait_for "http://127.0.0.1:$litserve_port/predict"

"${run[@]}" "$CARGO_TARGET_DIR/release/examples/bench_edge" --seconds "$seconds" --ours "$ours" \
  --peer "mosec=127.0.0.1:$mosec_port/inference" --peer "litserve=127.0.0.1:$litserve_port/predict"
