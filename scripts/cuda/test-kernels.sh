#!/usr/bin/env bash
# Compiles the CUDA kernels as C++ for the CPU and compares each with a plain reference: wrong indices, missing barriers and accesses
# out of bounds are found without a GPU. Needs g++ (or CXX) with AddressSanitizer; a minute.
# Usage: scripts/cuda/test-kernels.sh ['group norm' | 'layer norm' | activations | geglu | add | upsample | softmax | attention]
set -euo pipefail
cd "$(dirname "$0")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
here=scripts/cuda/emulation
# Fibers have stacks of their own, which the sanitizer cannot tell from an overflow of one.
"${CXX:-g++}" -std=c++17 -O1 -g1 -DINKSTONE_EMULATION -fsanitize=address,undefined -fno-sanitize-recover=undefined \
  -Wall -Wno-unknown-pragmas -I "$here" -I crates/diffusion/kernels \
  -o "$scratch/test" "$here/emulation.cc" "$here/kernels_test.cc"
ASAN_OPTIONS=detect_stack_use_after_return=0:detect_leaks=0 "$scratch/test" "$@" 2> >(grep -v "fully support makecontext" >&2)
