#!/usr/bin/env bash
# Installs the pictures and names that the demo model is trained on, as package-lock.json pins
# them, into .work/npm beside this script. Needs npm; nothing in the packages is executed.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
target="$here/.work/npm"

mkdir -p "$target"
cp "$here/package.json" "$here/package-lock.json" "$target/"
npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund
echo "art: $target/node_modules"
