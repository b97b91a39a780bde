#!/usr/bin/env bash
# Our engine and diffusers on the same weights and thread count, taking turns in one run; prints medians and ratios.
# Usage: scripts/bench-engine.sh [ROUNDS [PART…]], parts: picture unet vae jobs ops.
# Installs diffusers and torch (2 GB), pinned, into .tools/diffusers the first time; INKSTONE_DIFFUSERS_PYTHON names a
# Python that has them already. Random weights of 0.5 GB are written to .tools/scratch/bench.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-5}
shift || true
python=${INKSTONE_DIFFUSERS_PYTHON:-.tools/diffusers/bin/python}
if [ ! -x "$python" ]; then
  echo "installing diffusers and torch into .tools/diffusers (once, about 2 GB)"
  python3 -m venv .tools/diffusers
  .tools/diffusers/bin/pip install --quiet --disable-pip-version-check -r scripts/golden/requirements.txt
fi
cargo build --workspace --example bench
"$python" scripts/bench/engine.py "$CARGO_TARGET_DIR/debug/examples/bench" "$rounds" "$@"
