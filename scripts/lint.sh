#!/usr/bin/env bash
# Everything that reads the code without running it.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- --deny warnings
cargo xtask layers
cargo xtask tidy
cargo xtask settings --check

# The protos: their style, and that what was released is still understood.
buf lint proto
buf breaking proto --against proto/baseline.binpb
(cd proto && buf breaking --against baseline.binpb --config buf.public.yaml --path inkstone/v1 --path inference)

# Licences, duplicates and sources need no network; advisories need their database.
cargo-deny --log-level error check bans licenses sources
if ! cargo-deny --log-level error check advisories 2>.tools/advisories.log; then
  if grep -qE 'failed to (fetch|acquire|load)|unable to|network|resolve' .tools/advisories.log; then
    echo "note: the advisory database cannot be reached from here; advisories were not checked"
  else
    cat .tools/advisories.log >&2
    exit 1
  fi
fi
