#!/usr/bin/env bash
# Makes CUDA-HOME/lib64/stubs/libcuda.so.1: every function of the driver that cudarc names, each answering "no device". Programs
# are linked with it where no driver is; the driver's own library takes its place where one is. Last in LD_LIBRARY_PATH it lets a
# program start without a driver and say so itself.
# Usage: stub-driver.sh CUDA-HOME
set -euo pipefail
cd "$(dirname "$0")/../.."

stubs=$1/lib64/stubs
sources=$(cargo metadata --format-version 1 --locked --all-features |
  python3 -c '
import json, pathlib, sys
packages = json.load(sys.stdin)["packages"]
print(next(pathlib.Path(p["manifest_path"]).parent for p in packages if p["name"] == "cudarc"))')
mkdir -p "$stubs"
{
  echo '/* CUDA_ERROR_NO_DEVICE */'
  grep -oE '\bfn cu[A-Z][A-Za-z0-9_]*' "$sources/src/driver/sys/mod.rs" | sed 's/^fn //' | sort -u |
    sed 's/.*/int &(void) { return 100; }/'
} > "$stubs/stub.c"
"${CC:-cc}" -shared -fPIC -w -O1 -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so.1" "$stubs/stub.c"
ln -sf libcuda.so.1 "$stubs/libcuda.so"
