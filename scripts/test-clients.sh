#!/usr/bin/env bash
# The packages that callers have, and gRPC reflection, against a running platform. Installs them, pinned, into .tools/:
# an environment for each, because they do not agree on what they depend on.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

TESTS=tests/clients

# Makes the environment of `$TESTS/$1.txt`, with what else pip is told, and prints its folder.
environment() {
  local requirements="$TESTS/$1.txt" venv=".tools/clients-$1"
  if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    echo "installing the packages of $requirements" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${@:2}" --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
  fi
  echo "$venv"
}

openai=$(environment openai)
dashscope=$(environment dashscope)
triton=$(environment triton)
# The package depends on all that its server needs, 328 MB; the file lists what its client does, 30 MB to load.
kserve=$(environment kserve --no-deps)
nats=$(environment nats)

# Node itself is not installed here: there are machines without it, on which this part is skipped.
node=.tools/clients-node
node_major=$(node --version 2>/dev/null | sed -E 's/^v([0-9]+).*/\1/' || true)
if [ "${node_major:-0}" -ge 20 ] && command -v npm >/dev/null; then
  if ! cmp -s "$TESTS/node/package-lock.json" "$node/installed.json"; then
    echo "installing the packages of $TESTS/node/package-lock.json" >&2
    rm -rf "$node"
    mkdir -p "$node"
    cp "$TESTS/node/package.json" "$TESTS/node/package-lock.json" "$node/"
    (cd "$node" && npm ci --silent --ignore-scripts --no-audit --no-fund)
    cp "$TESTS/node/package-lock.json" "$node/installed.json"
  fi
  cp "$TESTS/node/openai.test.js" "$node/"
else
  echo "SKIPPED: the tests of OpenAI's package for Node: they need Node 20 or newer, with npm" >&2
  node=
fi

# A certificate for a server on this machine, from which pictures are fetched in the tests.
INKSTONE_TEST_TLS=.tools/clients-tls
mkdir -p "$INKSTONE_TEST_TLS"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1 \
  -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
  -keyout "$INKSTONE_TEST_TLS/key.pem" -out "$INKSTONE_TEST_TLS/cert.pem" 2>/dev/null
export INKSTONE_TEST_TLS
export INKSTONE_GATEWAY__EGRESS__ALLOW='["127.0.0.1"]'
export INKSTONE_GATEWAY__EGRESS__HTTPS_ONLY=false
export INKSTONE_GATEWAY__EGRESS__CA_FILE="$PWD/$INKSTONE_TEST_TLS/cert.pem"

# shellcheck source=scripts/with-platform.sh
. scripts/with-platform.sh
"$openai/bin/python" -m pytest --quiet -p no:cacheprovider $TESTS/test_openai.py $TESTS/test_openai_edits.py $TESTS/test_grpc.py
"$dashscope/bin/python" -m pytest --quiet -p no:cacheprovider $TESTS/test_dashscope.py
"$triton/bin/python" -m pytest --quiet -p no:cacheprovider $TESTS/test_oip.py $TESTS/test_same_picture.py
"$kserve/bin/python" -m pytest --quiet -p no:cacheprovider $TESTS/test_kserve.py
# The messages of proto/ as a producer in Python has them.
"$nats/bin/python" -m grpc_tools.protoc -I proto --python_out="$nats" proto/inkstone/v1/image.proto
PYTHONPATH="$nats" "$nats/bin/python" -m pytest --quiet -p no:cacheprovider $TESTS/test_nats.py
if [ -n "$node" ]; then
  (cd "$node" && node --test --test-reporter=dot openai.test.js)
fi
