// What the kernels share: the three types that models compute in, vectors of them, sums over a warp.
//
// The same sources compile as C++ for the CPU (scripts/cuda/test-kernels.sh), where `emulation.h` stands in for CUDA.
#pragma once

#include <stdint.h>

#ifdef INKSTONE_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef __half f16;
typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float wide(f16 x) { return __half2float(x); }
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }

// The block's dynamic shared memory, of the size that the launch gave.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

__device__ __forceinline__ float wide(float x) { return x; }
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }

constexpr unsigned WHOLE_WARP = 0xffffffffu;
constexpr int WARP = 32;

// N values that are read and written at once; with N = 8 and two bytes each, one 16-byte access.
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T values[N];
};

template <typename T, int N>
__device__ __forceinline__ void load(const T *from, float (&to)[N]) {
  const Vector<T, N> vector = *reinterpret_cast<const Vector<T, N> *>(from);
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = wide(vector.values[i]);
}

template <typename T, int N>
__device__ __forceinline__ void store(const float (&from)[N], T *to) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; i++) vector.values[i] = narrow<T>(from[i]);
  *reinterpret_cast<Vector<T, N> *>(to) = vector;
}

// The sum over a warp's lanes, the same in each of them.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, step);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2)
    x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, step));
  return x;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}
