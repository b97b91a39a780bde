# What the CUDA build is made with; sourced by the scripts beside. Driver 580 and newer run the result.
CUDA_TOOLKIT=13.0.2
CUDNN=9.28.1.4
# Hopper by default; another GPU's compute capability, without the dot, serves as well.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
export CUDARC_CUDA_VERSION=13000
export CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-2}
