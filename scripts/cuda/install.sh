#!/usr/bin/env bash
# Installs, once and pinned, what building for CUDA takes into .tools/ (ignored by git, 2.1 GB): NVIDIA's compiler and libraries
# as Python packages in .tools/cuda, a CUDA home of links to them in .tools/cuda-home, and there a stand-in for the driver.
# No GPU and no driver are needed. Needs Python 3.9+ with venv, and a C compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
source scripts/cuda/versions.sh

venv=$PWD/.tools/cuda home=$PWD/.tools/cuda-home
want="$CUDA_TOOLKIT $CUDNN"
if [ "$(cat .tools/cuda.version 2>/dev/null)" != "$want" ]; then
  echo "installing CUDA $CUDA_TOOLKIT and cuDNN $CUDNN into .tools/cuda (once, about 2 GB)"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --disable-pip-version-check \
    "cuda-toolkit[nvcc,nvrtc,cudart,cublas,curand,crt,nvvm,cccl]==$CUDA_TOOLKIT" "nvidia-cudnn-cu13==$CUDNN"
  echo "$want" > .tools/cuda.version
fi

packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia
rm -rf "$home"
mkdir -p "$home/lib64"
for part in bin nvvm include; do
  ln -s "$packages/cu13/$part" "$home/$part"
done
# The linker looks for names without a version; the packages have only names with one.
for library in "$packages"/cu13/lib/*.so* "$packages"/cu13/lib/*.a "$packages"/cudnn/lib/*.so*; do
  [ -e "$library" ] || continue
  name=$(basename "$library")
  ln -s "$library" "$home/lib64/$name"
  case $name in
    *.so.*) [ -e "$home/lib64/${name%%.so.*}.so" ] || ln -s "$library" "$home/lib64/${name%%.so.*}.so" ;;
  esac
done
scripts/cuda/stub-driver.sh "$home"
echo "CUDA home: $home"
