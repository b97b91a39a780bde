// Softmax attention for heads of 64 values, f16 and bf16, on tensor cores with f32 sums, without the matrix of all queries by all
// keys (FlashAttention-2, Dao 2023: the softmax is kept up while keys pass by). CPU reference: ops/attention.rs.
//
// A block takes 128 queries of one head: four warps of 32 queries each. Keys and values pass through shared memory in tiles of 64,
// two tiles deep: one is computed with while the next is copied. A row of the batch brings its own keys and values, so that
// texts which different jobs prepared need not be brought together first.
#include "tensor_core.cuh"

constexpr int DEPTH = 64;                 // values of a head
constexpr int KEYS = 64;                  // keys a tile
constexpr int WARPS = 4;
constexpr int STRIPES = 2;                // of 16 queries a warp
constexpr int QUERIES = WARPS * STRIPES * 16;
constexpr int CHUNK = 8;                  // values of two bytes in 16 bytes
constexpr int CHUNKS = DEPTH / CHUNK;     // 16-byte chunks a key
constexpr int KEY_BLOCKS = KEYS / 8;      // blocks of 8 keys, the width of a product
constexpr int DEPTH_BLOCKS = DEPTH / 8;
constexpr int MAX_ROWS = 16;

// Where each row of the batch has its keys and values.
struct Rows {
  const void *keys[MAX_ROWS];
  const void *values[MAX_ROWS];
};

struct Shape {
  int tokens;           // queries a row
  int others;           // keys a row
  int heads;
  int query_stride;     // values from one query to the next
  int key_stride;       // values from one key, or value, to the next
  int causal;           // whether a query sees only keys up to its own
  float scale;          // of the scores, times log2(e)
};

// Chunks of a key are stored in an order that depends on the key, so that eight keys' like chunks lie in different banks.
template <typename T> __device__ __forceinline__ T *chunk_of(T *tile, int key, int chunk) {
  return tile + key * DEPTH + (chunk ^ (key % CHUNKS)) * CHUNK;
}

template <typename T>
__device__ __forceinline__ void copy_tile(T *tile, const T *from, int first, int others, int stride) {
  for (int i = threadIdx.x; i < KEYS * CHUNKS; i += WARPS * WARP) {
    const int key = i / CHUNKS, chunk = i % CHUNKS;
    const bool there = first + key < others;
    const T *source = from + (there ? static_cast<size_t>(first + key) * stride + chunk * CHUNK : 0);
    copy_begin(chunk_of(tile, key, chunk), source, there);
  }
}

// The queries of a stripe as left sides of products: rows g and g + 8, all of a head's depth. Rows beyond the last are zero.
template <typename T>
__device__ __forceinline__ void load_queries(uint32_t (&to)[DEPTH / 16][4], const T *queries, int first, Shape shape) {
  const int lane = threadIdx.x % WARP, row = first + lane / 4, column = lane % 4 * 2;
#pragma unroll
  for (int step = 0; step < DEPTH / 16; step++)
#pragma unroll
    for (int part = 0; part < 4; part++) {
      const int query = row + part % 2 * 8, at = step * 16 + part / 2 * 8 + column;
      to[step][part] = query < shape.tokens ? *reinterpret_cast<const uint32_t *>(
                                                  queries + static_cast<size_t>(query) * shape.query_stride + at)
                                            : 0u;
    }
}

// scores = queries · keys of the tile.
template <typename T>
__device__ __forceinline__ void score(float (&scores)[STRIPES][KEY_BLOCKS][4], const uint32_t (&queries)[STRIPES][DEPTH / 16][4],
                                      T *tile) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int block = 0; block < KEY_BLOCKS; block++) {
#pragma unroll
    for (int stripe = 0; stripe < STRIPES; stripe++)
#pragma unroll
      for (int i = 0; i < 4; i++) scores[stripe][block][i] = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t keys[4];
      load_matrices(keys, chunk_of(tile, block * 8 + lane % 8, half * 4 + lane / 8));
#pragma unroll
      for (int step = 0; step < 2; step++) {
        const uint32_t right[2] = {keys[2 * step], keys[2 * step + 1]};
#pragma unroll
        for (int stripe = 0; stripe < STRIPES; stripe++)
          multiply<T>(scores[stripe][block], queries[stripe][half * 2 + step], right);
      }
    }
  }
}

// Weights of a stripe from its scores; sums and the result so far are brought to the new maximum. Of each pair of rows, g and
// g + 8, a lane holds a quarter of the columns.
__device__ __forceinline__ void weigh(float (&scores)[KEY_BLOCKS][4], float (&result)[DEPTH_BLOCKS][4], float (&most)[2],
                                      float (&sum)[2], int query, int first, Shape shape) {
  const int column = first + threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int last = shape.causal && query + half * 8 < shape.others ? query + half * 8 : shape.others - 1;
    float top = most[half];
#pragma unroll
    for (int block = 0; block < KEY_BLOCKS; block++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float &value = scores[block][half * 2 + i];
        value = column + block * 8 + i <= last ? value * shape.scale : -INFINITY;
        top = fmaxf(top, value);
      }
    top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 2));
    // The first tile has the first key, which every query sees: `top` is finite.
    const float factor = exp2f(most[half] - top);
    float total = 0.0f;
#pragma unroll
    for (int block = 0; block < KEY_BLOCKS; block++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float &value = scores[block][half * 2 + i];
        value = exp2f(value - top);
        total += value;
      }
    most[half] = top;
    sum[half] = sum[half] * factor + total;
#pragma unroll
    for (int block = 0; block < DEPTH_BLOCKS; block++)
#pragma unroll
      for (int i = 0; i < 2; i++) result[block][half * 2 + i] *= factor;
  }
}

// result += weights · values of the tile.
template <typename T>
__device__ __forceinline__ void gather(float (&result)[STRIPES][DEPTH_BLOCKS][4],
                                       const float (&weights)[STRIPES][KEY_BLOCKS][4], T *tile) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int step = 0; step < KEYS / 16; step++) {
    uint32_t left[STRIPES][4];
#pragma unroll
    for (int stripe = 0; stripe < STRIPES; stripe++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const float *pair = &weights[stripe][step * 2 + part / 2][part % 2 * 2];
        left[stripe][part] = pack(narrow<T>(pair[0]), narrow<T>(pair[1]));
      }
#pragma unroll
    for (int two = 0; two < DEPTH_BLOCKS / 2; two++) {
      uint32_t values[4];
      load_matrices_transposed(values, chunk_of(tile, step * 16 + lane / 8 % 2 * 8 + lane % 8, two * 2 + lane / 16));
#pragma unroll
      for (int block = 0; block < 2; block++) {
        const uint32_t right[2] = {values[2 * block], values[2 * block + 1]};
#pragma unroll
        for (int stripe = 0; stripe < STRIPES; stripe++)
          multiply<T>(result[stripe][two * 2 + block], left[stripe], right);
      }
    }
  }
}

// A quad's lanes each hold a part of a row's sum.
template <typename T>
__device__ __forceinline__ void store_results(T *out, const float (&result)[DEPTH_BLOCKS][4], const float (&sum)[2], int query,
                                              int column, Shape shape) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float total = sum[half];
    total += __shfl_xor_sync(WHOLE_WARP, total, 1);
    total += __shfl_xor_sync(WHOLE_WARP, total, 2);
    const float factor = 1.0f / total;
    if (query + half * 8 >= shape.tokens) continue;
    T *to = out + static_cast<size_t>(query + half * 8) * shape.heads * DEPTH + column;
#pragma unroll
    for (int block = 0; block < DEPTH_BLOCKS; block++)
      *reinterpret_cast<uint32_t *>(to + block * 8) = pack(narrow<T>(result[block][half * 2] * factor),
                                                           narrow<T>(result[block][half * 2 + 1] * factor));
  }
}

// Grid (blocks of queries, heads, rows), block (128). queries: row r begins at r * tokens * query_stride; out: (rows, tokens,
// heads * 64). Chunks of keys and values begin at multiples of 16 bytes, queries at multiples of 4.
template <typename T> __device__ void attention(const T *queries, Rows rows, T *out, Shape shape) {
  alignas(16) __shared__ T keys[2][KEYS * DEPTH];
  alignas(16) __shared__ T values[2][KEYS * DEPTH];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int row = blockIdx.z, head = blockIdx.y * DEPTH;
  const int block = blockIdx.x * QUERIES, first = block + warp * STRIPES * 16;
  const T *all_keys = static_cast<const T *>(rows.keys[row]) + head;
  const T *all_values = static_cast<const T *>(rows.values[row]) + head;
  queries += static_cast<size_t>(row) * shape.tokens * shape.query_stride + head;
  out += static_cast<size_t>(row) * shape.tokens * shape.heads * DEPTH + head;

  uint32_t mine[STRIPES][DEPTH / 16][4];
  float result[STRIPES][DEPTH_BLOCKS][4] = {};
  float most[STRIPES][2], sum[STRIPES][2] = {};
#pragma unroll
  for (int stripe = 0; stripe < STRIPES; stripe++) {
    load_queries(mine[stripe], queries, first + stripe * 16, shape);
    most[stripe][0] = most[stripe][1] = -INFINITY;
  }

  // With `causal` nothing beyond the block's last query is seen.
  const int end = shape.causal && block + QUERIES < shape.others ? block + QUERIES : shape.others;
  const int tiles = (end + KEYS - 1) / KEYS;
  copy_tile(keys[0], all_keys, 0, shape.others, shape.key_stride);
  copy_tile(values[0], all_values, 0, shape.others, shape.key_stride);
  copy_group();
  for (int tile = 0; tile < tiles; tile++) {
    const int now = tile % 2, next = (tile + 1) * KEYS;
    if (next < end) {
      copy_tile(keys[1 - now], all_keys, next, shape.others, shape.key_stride);
      copy_tile(values[1 - now], all_values, next, shape.others, shape.key_stride);
    }
    copy_group();
    copy_wait<1>();
    __syncthreads();
    float scores[STRIPES][KEY_BLOCKS][4];
    score<T>(scores, mine, keys[now]);
#pragma unroll
    for (int stripe = 0; stripe < STRIPES; stripe++)
      weigh(scores[stripe], result[stripe], most[stripe], sum[stripe], first + stripe * 16 + lane / 4, tile * KEYS, shape);
    gather<T>(result, scores, values[now]);
    // The next turn overwrites what this one read.
    __syncthreads();
  }
#pragma unroll
  for (int stripe = 0; stripe < STRIPES; stripe++)
    store_results(out, result[stripe], sum[stripe], first + stripe * 16 + lane / 4, lane % 4 * 2, shape);
}

extern "C" __global__ void __launch_bounds__(WARPS *WARP) attention_f16(const f16 *queries, Rows rows, f16 *out, Shape shape) {
  attention<f16>(queries, rows, out, shape);
}
extern "C" __global__ void __launch_bounds__(WARPS *WARP) attention_bf16(const bf16 *queries, Rows rows, bf16 *out, Shape shape) {
  attention<bf16>(queries, rows, out, shape);
}
