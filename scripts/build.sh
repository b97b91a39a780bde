#!/usr/bin/env bash
# Builds the `inkstone` binary; says so when it is the first build, which is long.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo >/dev/null; then
  echo "cargo is missing: install Rust 1.95 or newer from https://rustup.rs" >&2
  exit 1
fi
if [ ! -x "$CARGO_TARGET_DIR/debug/inkstone" ]; then
  echo "first build: minutes, with cargo's progress below; later ones take seconds"
fi
cargo build --workspace --bin inkstone
