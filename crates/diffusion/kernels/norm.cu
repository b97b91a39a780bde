// Group and layer normalisation over channels-last pictures. CPU reference: ops/norm.rs.
//
// Means and squared distances are f32 whatever the type. Every sum has one order, fixed by the shape of a single picture: a
// picture gets the same bits whoever shares its batch.
#include "device.cuh"

// Group normalisation takes three launches:
//  1. each block takes some pixels of one picture and leaves, for each group, their mean and summed squared distance to it;
//  2. those are joined, and become a scale and a shift for each channel;
//  3. y = x * scale + shift, through SiLU where wanted.
//
// In 1 and 3 a block has `lanes` rows of `channels / N` threads; a thread keeps its N channels and walks down the pixels.

// Grid (parts, batch), block (channels / N * lanes), shared 8 * channels * lanes bytes.
// x: (batch, pixels, channels); out: (batch, parts, groups, 2). A part is `size` pixels; the last may have fewer.
template <typename T, int N>
__device__ void group_norm_partial(const T *x, float *out, int pixels, int channels, int groups, int size) {
  DYNAMIC_SHARED(shared);
  const int columns = channels / N;
  const int lanes = blockDim.x / columns;
  const int column = threadIdx.x % columns, lane = threadIdx.x / columns;
  float *means = reinterpret_cast<float *>(shared);
  float *squares = means + lanes * channels;
  const int begin = blockIdx.x * size;
  const int end = begin + size < pixels ? begin + size : pixels;
  const T *picture = x + static_cast<size_t>(blockIdx.y) * pixels * channels + column * N;

  // Around each channel's first value, so that a mean far from zero costs no digits.
  float first[N], sum[N] = {}, square[N] = {};
  int count = 0;
  for (int pixel = begin + lane; pixel < end; pixel += lanes) {
    float values[N];
    load<T, N>(picture + static_cast<size_t>(pixel) * channels, values);
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (count == 0) first[i] = values[i];
      const float distance = values[i] - first[i];
      sum[i] += distance;
      square[i] += distance * distance;
    }
    count++;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int at = lane * channels + column * N + i;
    const float mean = count == 0 ? 0.0f : sum[i] / count;
    means[at] = count == 0 ? 0.0f : first[i] + mean;
    squares[at] = count == 0 ? 0.0f : fmaxf(square[i] - sum[i] * mean, 0.0f);
  }
  __syncthreads();

  // A warp a group. The block may end in less than a warp, which then has no part in this.
  const int width = channels / groups, warps = blockDim.x / WARP;
  const int warp = threadIdx.x / WARP, thread = threadIdx.x % WARP;
  if (warp >= warps) return;
  const int here = end - begin;
  for (int group = warp; group < groups; group += warps) {
    float total = 0.0f;
    for (int i = thread; i < width * lanes; i += WARP) {
      const int of = i / width;
      const int pixels_of = of < here ? (here - of + lanes - 1) / lanes : 0;
      total += pixels_of * means[of * channels + group * width + i % width];
    }
    const float mean = warp_sum(total) / (static_cast<float>(here) * width);
    float spread = 0.0f;
    for (int i = thread; i < width * lanes; i += WARP) {
      const int of = i / width;
      const int pixels_of = of < here ? (here - of + lanes - 1) / lanes : 0;
      const int at = of * channels + group * width + i % width;
      const float distance = means[at] - mean;
      spread += squares[at] + pixels_of * distance * distance;
    }
    spread = warp_sum(spread);
    if (thread == 0) {
      float *to = out + ((static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * groups + group) * 2;
      to[0] = mean;
      to[1] = spread;
    }
  }
}

// Grid (groups, batch), block (32). scales: (batch, 2, channels): the scales, then the shifts.
extern "C" __global__ void group_norm_join(const float *partial, const float *weight, const float *bias, float *scales,
                                           int parts, int pixels, int channels, int size, float eps) {
  const int groups = gridDim.x, group = blockIdx.x, width = channels / groups;
  const float *mine = partial + (static_cast<size_t>(blockIdx.y) * parts * groups + group) * 2;
  float total = 0.0f;
  for (int part = threadIdx.x; part < parts; part += WARP) {
    const int here = part + 1 < parts ? size : pixels - part * size;
    total += here * mine[static_cast<size_t>(part) * groups * 2];
  }
  const float mean = warp_sum(total) / pixels;
  float spread = 0.0f;
  for (int part = threadIdx.x; part < parts; part += WARP) {
    const int here = part + 1 < parts ? size : pixels - part * size;
    const float *at = mine + static_cast<size_t>(part) * groups * 2;
    const float distance = at[0] - mean;
    spread += at[1] + static_cast<float>(here) * width * distance * distance;
  }
  const float factor = 1.0f / sqrtf(warp_sum(spread) / (static_cast<float>(pixels) * width) + eps);
  float *to = scales + static_cast<size_t>(blockIdx.y) * 2 * channels + group * width;
  for (int i = threadIdx.x; i < width; i += WARP) {
    const float scale = weight[group * width + i] * factor;
    to[i] = scale;
    to[channels + i] = bias[group * width + i] - mean * scale;
  }
}

// Grid (parts, batch), block (channels / N * lanes). y has the shape of x.
template <typename T, int N>
__device__ void group_norm_apply(const T *x, const float *scales, T *y, int pixels, int channels, int size,
                                 int with_silu) {
  const int columns = channels / N;
  const int lanes = blockDim.x / columns;
  const int column = threadIdx.x % columns, lane = threadIdx.x / columns;
  const int begin = blockIdx.x * size;
  const int end = begin + size < pixels ? begin + size : pixels;
  const size_t start = static_cast<size_t>(blockIdx.y) * pixels * channels + column * N;
  const float *mine = scales + static_cast<size_t>(blockIdx.y) * 2 * channels + column * N;
  float scale[N], shift[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    scale[i] = mine[i];
    shift[i] = mine[channels + i];
  }
  for (int pixel = begin + lane; pixel < end; pixel += lanes) {
    const size_t at = start + static_cast<size_t>(pixel) * channels;
    float values[N];
    load<T, N>(x + at, values);
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float value = values[i] * scale[i] + shift[i];
      values[i] = with_silu ? silu(value) : value;
    }
    store<T, N>(values, y + at);
  }
}

// A warp a row. Grid (rows over warps a block), block (a multiple of 32). The row is read three times, twice from the cache.
template <typename T, int N>
__device__ void layer_norm(const T *x, const float *weight, const float *bias, T *y, int rows, int channels, float eps) {
  const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  const int thread = threadIdx.x % WARP;
  if (row >= rows) return;
  const T *from = x + static_cast<size_t>(row) * channels;
  T *to = y + static_cast<size_t>(row) * channels;
  float values[N];
  float sum = 0.0f;
  for (int c = thread * N; c < channels; c += WARP * N) {
    load<T, N>(from + c, values);
#pragma unroll
    for (int i = 0; i < N; i++) sum += values[i];
  }
  const float mean = warp_sum(sum) / channels;
  sum = 0.0f;
  for (int c = thread * N; c < channels; c += WARP * N) {
    load<T, N>(from + c, values);
#pragma unroll
    for (int i = 0; i < N; i++) sum += (values[i] - mean) * (values[i] - mean);
  }
  const float factor = 1.0f / sqrtf(warp_sum(sum) / channels + eps);
  for (int c = thread * N; c < channels; c += WARP * N) {
    load<T, N>(from + c, values);
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = (values[i] - mean) * factor * weight[c + i] + bias[c + i];
    store<T, N>(values, to + c);
  }
}

#define KERNELS(T, N)                                                                                              \
  extern "C" __global__ void group_norm_partial_##T##_##N(const T *x, float *out, int pixels, int channels,        \
                                                          int groups, int size) {                                  \
    group_norm_partial<T, N>(x, out, pixels, channels, groups, size);                                              \
  }                                                                                                                \
  extern "C" __global__ void group_norm_apply_##T##_##N(const T *x, const float *scales, T *y, int pixels,         \
                                                        int channels, int size, int with_silu) {                   \
    group_norm_apply<T, N>(x, scales, y, pixels, channels, size, with_silu);                                       \
  }                                                                                                                \
  extern "C" __global__ void layer_norm_##T##_##N(const T *x, const float *weight, const float *bias, T *y,        \
                                                  int rows, int channels, float eps) {                             \
    layer_norm<T, N>(x, weight, bias, y, rows, channels, eps);                                                     \
  }

typedef float f32;
KERNELS(f32, 1)
KERNELS(f32, 8)
KERNELS(f16, 1)
KERNELS(f16, 8)
KERNELS(bf16, 1)
KERNELS(bf16, 8)
