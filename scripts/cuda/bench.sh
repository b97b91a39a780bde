#!/usr/bin/env bash
# On a machine with a GPU: is what it computes right (small models against the CPU), and how fast is a model of SDXL's size at
# 1024², 30 steps, batches of 1, 2, 4 and 8, f16 and bf16; diffusers beside it where torch with CUDA is. Prints one table for
# docs/PERFORMANCE.md. What is missing is said in a line.
#
# Usage: scripts/cuda/bench.sh [--model DIR] [--python PYTHON] [--device cuda:N] [--side PIXELS] [--steps N] [--batches 1,2,4,8]
#   --model   a model in diffusers' layout; without it one of random weights is made (7 GB)
#   --python  whose nvidia/cu13, nvidia/cudnn, torch and diffusers are used (default: .tools/cuda's, then python3)
# INKSTONE_EXAMPLES names a folder with a built `bench_cuda` (and `random_model`); without it they are built, which takes the network once.
set -euo pipefail
cd "$(dirname "$0")/../.."

model='' python='' device=cuda:0 side=1024 steps=30 batches=1,2,4,8
while [ $# -gt 0 ]; do
  case $1 in
    --model) model=$2 ;;
    --python) python=$2 ;;
    --device) device=$2 ;;
    --side) side=$2 ;;
    --steps) steps=$2 ;;
    --batches) batches=$2 ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
  esac
  shift 2
done

missing() { echo "missing: $*"; }

examples=${INKSTONE_EXAMPLES:-${CARGO_TARGET_DIR:-target}/release/examples}
if [ ! -x "$examples/bench_cuda" ]; then
  if [ -n "${INKSTONE_EXAMPLES:-}" ] || ! scripts/cuda/build.sh; then
    missing "the bench: build it with make cuda, or name its folder with INKSTONE_EXAMPLES"
    exit 1
  fi
fi

# A Python with NVIDIA's libraries as packages: its folders of libraries, or nothing.
libraries_of() {
  "$1" -c '
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
roots = [pathlib.Path(root) for root in (spec.submodule_search_locations if spec else [])]
found = [str(root / part / "lib") for part in ("cu13", "cudnn") for root in roots if (root / part / "lib").is_dir()]
print(":".join(found) if len(found) > 1 else "")' 2>/dev/null || true
}
libraries=''
for candidate in "$python" .tools/cuda/bin/python python3; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
  libraries=$(libraries_of "$candidate")
  [ -z "$libraries" ] || break
done
if [ -n "$libraries" ]; then
  export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
else
  missing "NVIDIA's libraries as packages of a Python (nvidia/cu13, nvidia/cudnn); the system's are tried"
fi
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader || missing "a driver that answers nvidia-smi"
else
  missing "nvidia-smi; the GPU's name stays unknown"
fi
# Last, so that the bench can say itself that no driver is there.
[ ! -d .tools/cuda-home ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$PWD/.tools/cuda-home/lib64/stubs

echo "correctness, against the CPU:"
for folder in crates/diffusion/tests/golden/mini assets/models/inkstone-demo; do
  for dtype in f32 f16 bf16; do
    "$examples/bench_cuda" "$folder" "$device" "$dtype" --check || exit 1
  done
done

scratch=''
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT
if [ -z "$model" ]; then
  free=$(df --output=avail -k . | tail -1)
  if [ ! -x "$examples/random_model" ] && [ -z "${INKSTONE_EXAMPLES:-}" ]; then
    cargo build --release --package diffusion --example random_model 2>/dev/null || true
  fi
  if [ ! -x "$examples/random_model" ]; then
    missing "a model of SDXL's size: name one with --model"
  elif [ "$free" -lt 8000000 ]; then
    missing "8 GB of free disk for a model of random weights"
  else
    mkdir -p .tools/scratch
    scratch=$(mktemp -d .tools/scratch/random-sdxl.XXXX)
    echo "writing a model of SDXL's size with random weights to $scratch"
    "$examples/random_model" "$scratch"
    model=$scratch
  fi
fi
[ -n "$model" ] || exit 0

echo "$side×$side, $steps steps, guidance 5, from prompt to pixels; a picture's share of its batch:"
echo "| engine | type | batch | s a picture | ms a step | decoding, s | pictures a s | peak GiB |"
echo "|---|---|---|---|---|---|---|---|"
for dtype in f16 bf16; do
  "$examples/bench_cuda" "$model" "$device" "$dtype" "$side" "$steps" "$batches"
done
for candidate in "$python" .tools/diffusers/bin/python python3; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
  if "$candidate" -c 'import diffusers, torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null; then
    for dtype in f16 bf16; do
      "$candidate" scripts/cuda/bench_diffusers.py "$model" "$device" "$dtype" "$side" "$steps" "$batches" ||
        missing "diffusers' numbers in $dtype: it failed"
    done
    exit 0
  fi
done
missing "diffusers' numbers: no Python here has diffusers and a torch that sees the GPU"
