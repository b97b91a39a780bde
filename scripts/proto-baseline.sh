#!/usr/bin/env bash
# Takes the protos as they are for released: proto/baseline.binpb, which `make lint` holds later ones against. Part of a release.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install-tools.sh buf
.tools/bin/buf build proto --exclude-source-info --output proto/baseline.binpb
echo "proto/baseline.binpb: $(wc -c <proto/baseline.binpb) bytes"
