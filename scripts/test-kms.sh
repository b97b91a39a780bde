#!/usr/bin/env bash
# Auth against a server that speaks AWS KMS's protocol: moto, installed from PyPI, pinned, into .tools/.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.tools/kms
REQUIREMENTS=tests/kms/requirements.txt
if ! cmp -s "$REQUIREMENTS" "$VENV/requirements.txt"; then
  echo "installing moto"
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --requirement "$REQUIREMENTS"
  cp "$REQUIREMENTS" "$VENV/requirements.txt"
fi

export INKSTONE_TEST_KMS="$PWD/$VENV/bin/moto_server"
cargo nextest run --workspace --filterset 'package(auth) & test(kms)'
