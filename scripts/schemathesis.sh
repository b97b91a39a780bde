#!/usr/bin/env bash
# The running server against its own OpenAPI document: PyPI schemathesis, pinned, into .tools/. ARGS go to `st run`.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.tools/clients-schemathesis
REQUIREMENTS=tests/clients/schemathesis.txt
if ! cmp -s "$REQUIREMENTS" "$VENV/requirements.txt"; then
  echo "installing the packages of $REQUIREMENTS"
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --requirement "$REQUIREMENTS"
  cp "$REQUIREMENTS" "$VENV/requirements.txt"
fi

# shellcheck source=scripts/with-platform.sh
. scripts/with-platform.sh
"$VENV/bin/st" --config-file tests/clients/schemathesis.toml run "$INKSTONE_URL/openapi.json" "$@"
