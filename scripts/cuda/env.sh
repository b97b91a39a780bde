# Where the CUDA toolkit is; sourced by the scripts beside, from the repository's root. A toolkit of the machine's own serves where
# scripts/cuda/install.sh has not run: set CUDA_HOME to it.
source scripts/cuda/versions.sh
if [ -d .tools/cuda-home ]; then
  export CUDA_HOME=$PWD/.tools/cuda-home
fi
: "${CUDA_HOME:?run scripts/cuda/install.sh, or set CUDA_HOME to a CUDA toolkit}"
export PATH=$CUDA_HOME/bin:$PATH
# The stub of the driver last: where a driver is, its own library is found before.
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$CUDA_HOME/lib64:$CUDA_HOME/lib64/stubs
