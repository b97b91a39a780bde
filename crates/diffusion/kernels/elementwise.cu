// What is done to each value on its own: activations, the gated unit, additions after a product, doubled pixels.
// CPU references: ops/activation.rs, ops/linear.rs, ops/conv.rs.
#include "device.cuh"

typedef float f32;

enum { SILU = 0, GELU = 1, QUICK_GELU = 2 };

// `count` vectors of N values; a thread walks over the grid.
template <typename T, int N> __device__ void activate(const T *x, T *y, size_t count, int function) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += stride) {
    float values[N];
    load<T, N>(x + at * N, values);
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float v = values[i];
      values[i] = function == SILU ? silu(v) : function == GELU ? gelu(v) : v / (1.0f + expf(-1.702f * v));
    }
    store<T, N>(values, y + at * N);
  }
}

// x: (rows, 2 * half); y: (rows, half): of each row's two halves, the first times GELU of the second.
template <typename T, int N> __device__ void geglu(const T *x, T *y, size_t rows, int half) {
  const int columns = half / N;
  const size_t count = rows * columns;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += stride) {
    const size_t row = at / columns;
    const int column = static_cast<int>(at % columns) * N;
    const T *from = x + row * 2 * half + column;
    float values[N], gates[N];
    load<T, N>(from, values);
    load<T, N>(from + half, gates);
#pragma unroll
    for (int i = 0; i < N; i++) values[i] *= gelu(gates[i]);
    store<T, N>(values, y + row * half + column);
  }
}

// y = x + bias + channel + picture, in f32 and rounded once; each of the three may be null.
// x, y, picture: (batch, pixels, channels); bias: (channels); channel: (batch, channels).
template <typename T, int N>
__device__ void add(const T *x, const T *bias, const T *channel, const T *picture, T *y, size_t rows, int pixels,
                    int channels) {
  const int columns = channels / N;
  const size_t count = rows * columns;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += stride) {
    const size_t row = at / columns;
    const int column = static_cast<int>(at % columns) * N;
    float values[N], more[N];
    load<T, N>(x + at * N, values);
    if (bias != nullptr) {
      load<T, N>(bias + column, more);
#pragma unroll
      for (int i = 0; i < N; i++) values[i] += more[i];
    }
    if (channel != nullptr) {
      load<T, N>(channel + row / pixels * channels + column, more);
#pragma unroll
      for (int i = 0; i < N; i++) values[i] += more[i];
    }
    if (picture != nullptr) {
      load<T, N>(picture + at * N, more);
#pragma unroll
      for (int i = 0; i < N; i++) values[i] += more[i];
    }
    store<T, N>(values, y + at * N);
  }
}

// x: (batch, height, width, channels); y: (batch, 2 height, 2 width, channels), each pixel four times.
// `count` is y's vectors of N values.
template <typename T, int N>
__device__ void upsample(const T *x, T *y, size_t count, int height, int width, int channels) {
  const int columns = channels / N;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += stride) {
    const size_t pixel = at / columns;
    const size_t line = pixel / (2 * width);
    const int across = static_cast<int>(pixel % (2 * width)) / 2;
    const size_t picture = line / (2 * height);
    const int down = static_cast<int>(line % (2 * height)) / 2;
    const T *from = x + ((picture * height + down) * width + across) * channels + at % columns * N;
    *reinterpret_cast<Vector<T, N> *>(y + at * N) = *reinterpret_cast<const Vector<T, N> *>(from);
  }
}

// Softmax of each row, in f32. x, y: (rows, keys). With `causal` a row is query `first + row % queries`, which sees keys up to
// its own; the rest get zero. Grid (rows), block (a multiple of 32, at most 1024).
template <typename T>
__device__ void softmax(const T *x, T *y, int keys, int causal, int first, int queries) {
  __shared__ float parts[WARP];
  const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, thread = threadIdx.x % WARP;
  const T *from = x + static_cast<size_t>(blockIdx.x) * keys;
  T *to = y + static_cast<size_t>(blockIdx.x) * keys;
  const int query = first + static_cast<int>(blockIdx.x % queries);
  const int seen = causal && query + 1 < keys ? query + 1 : keys;

  float most = -INFINITY;
  for (int key = threadIdx.x; key < seen; key += blockDim.x) most = fmaxf(most, wide(from[key]));
  most = warp_max(most);
  if (thread == 0) parts[warp] = most;
  __syncthreads();
  most = warp_max(thread < warps ? parts[thread] : -INFINITY);
  __syncthreads();

  float sum = 0.0f;
  for (int key = threadIdx.x; key < seen; key += blockDim.x) sum += expf(wide(from[key]) - most);
  sum = warp_sum(sum);
  if (thread == 0) parts[warp] = sum;
  __syncthreads();
  const float factor = 1.0f / warp_sum(thread < warps ? parts[thread] : 0.0f);
  for (int key = threadIdx.x; key < keys; key += blockDim.x)
    to[key] = narrow<T>(key < seen ? expf(wide(from[key]) - most) * factor : 0.0f);
}

#define KERNELS(T, N)                                                                                              \
  extern "C" __global__ void activate_##T##_##N(const T *x, T *y, size_t count, int function) {                    \
    activate<T, N>(x, y, count, function);                                                                         \
  }                                                                                                                \
  extern "C" __global__ void geglu_##T##_##N(const T *x, T *y, size_t rows, int half) {                            \
    geglu<T, N>(x, y, rows, half);                                                                                 \
  }                                                                                                                \
  extern "C" __global__ void add_##T##_##N(const T *x, const T *bias, const T *channel, const T *picture, T *y,    \
                                           size_t rows, int pixels, int channels) {                                \
    add<T, N>(x, bias, channel, picture, y, rows, pixels, channels);                                               \
  }                                                                                                                \
  extern "C" __global__ void upsample_##T##_##N(const T *x, T *y, size_t count, int height, int width,             \
                                                int channels) {                                                    \
    upsample<T, N>(x, y, count, height, width, channels);                                                          \
  }

#define SOFTMAX(T)                                                                                                 \
  extern "C" __global__ void softmax_##T(const T *x, T *y, int keys, int causal, int first, int queries) {         \
    softmax<T>(x, y, keys, causal, first, queries);                                                                \
  }

KERNELS(f32, 1)
KERNELS(f32, 8)
KERNELS(f16, 1)
KERNELS(f16, 8)
KERNELS(bf16, 1)
KERNELS(bf16, 8)
SOFTMAX(f32)
SOFTMAX(f16)
SOFTMAX(bf16)
