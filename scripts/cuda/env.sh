# Where the CUDA toolkit is; sourced by the scripts beside, from the repository's root.
source scripts/cuda/versions.sh
if [ -d .tools/cuda-home ]; then
  export CUDA_HOME=$PWD/.tools/cuda-home
fi
export PATH=$CUDA_HOME/bin:$PATH
# The compiler finds its own parts by its profile; NVVM lies beside it as links. Tests and build scripts that run here start with
# the stub last.
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$CUDA_HOME/lib64:$CUDA_HOME/lib64/stubs
