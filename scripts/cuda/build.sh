#!/usr/bin/env bash
# The worker for NVIDIA GPUs, and the engine's bench for GPUs: release builds with the features cuda and cudnn. No GPU is needed.
# CUDA_COMPUTE_CAP names the GPU that candle's kernels are compiled for (90, Hopper, by default); ours are compiled by the driver.
set -euo pipefail
cd "$(dirname "$0")/../.."

scripts/cuda/install.sh
source scripts/cuda/env.sh
target=${CARGO_TARGET_DIR:-$PWD/target}
if [ ! -x "$target/release/inkstone-gpu-worker" ]; then
  echo "first build: about 15 minutes of one core; candle's CUDA kernels alone take 7, in which cargo's progress stands still"
fi
cargo build --release --package gpu-worker --package diffusion \
  --features gpu-worker/cuda,gpu-worker/cudnn,diffusion/cuda,diffusion/cudnn \
  --bin inkstone-gpu-worker --example bench_cuda
echo "$target/release/inkstone-gpu-worker"
echo "docs/CUDA.md says what it takes to run it"
