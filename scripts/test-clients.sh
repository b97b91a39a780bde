#!/usr/bin/env bash
# The real OpenAI package, and gRPC reflection, against a running platform. Installs the packages, pinned, into .tools/.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.tools/clients
REQUIREMENTS=tests/clients/requirements.txt
if ! cmp -s "$REQUIREMENTS" "$VENV/requirements.txt"; then
  echo "installing client packages"
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --requirement "$REQUIREMENTS"
  cp "$REQUIREMENTS" "$VENV/requirements.txt"
fi

# shellcheck source=scripts/with-platform.sh
. scripts/with-platform.sh
"$VENV/bin/python" -m pytest --quiet -p no:cacheprovider tests/clients
