#!/usr/bin/env bash
# The packages that callers have, and gRPC reflection, against a running platform. Installs them, pinned, into .tools/:
# an environment for each, because they do not agree on what they depend on.
set -euo pipefail
cd "$(dirname "$0")/.."

TESTS=tests/clients

# Makes the environment of `$TESTS/$1.txt` and prints its folder.
environment() {
  local requirements="$TESTS/$1.txt" venv=".tools/clients-$1"
  if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    echo "installing the packages of $requirements" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
  fi
  echo "$venv"
}

openai=$(environment openai)
dashscope=$(environment dashscope)

# shellcheck source=scripts/with-platform.sh
. scripts/with-platform.sh
"$openai/bin/python" -m pytest --quiet -p no:cacheprovider $TESTS/test_openai.py $TESTS/test_grpc.py
"$dashscope/bin/python" -m pytest --quiet -p no:cacheprovider $TESTS/test_dashscope.py
