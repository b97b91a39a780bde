// CUDA on the CPU, as far as our kernels use it: to find wrong indices, missing barriers and reads out of bounds without a GPU.
//
// Each thread of a block is a fiber of its own; blocks run one after another. A barrier, a shuffle or a product of a warp waits for
// all threads that must take part, so a kernel in which they do not is found (it hangs on a GPU; here it is reported). Which fiber
// runs first can be turned round: a kernel whose result depends on it lacks a barrier. Copies that run beside land as late as they
// may in one order, and at once in the other. With AddressSanitizer, accesses outside of buffers and shared memory are found too.
//
// What it does not have: timing, memory transactions, f32 arithmetic other than the CPU's.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

constexpr int LANES = 32;
// The sanitizer clears its notes on a stack at each switch to it: small stacks are several times faster.
constexpr size_t STACK = 64 * 1024;

// The bits that a lane shows to its warp.
struct Shown {
  uint32_t words[8];
  const void *address;
};

struct Copy {
  void *to;
  const void *from;
  bool wanted;
};

enum class State { Ready, AtBlock, AtWarp, Done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::Ready;
  uint3 index;
  unsigned flat = 0;
  std::vector<Copy> begun;
  std::vector<std::vector<Copy>> groups;
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<std::vector<Shown>> shown;  // by warp, by lane
  std::function<void()> kernel;
  Fiber *running = nullptr;
  uint3 index;
  dim3 size, grid;
};

extern Block *block;
extern unsigned char *dynamic_shared;
extern bool reversed;

inline void fail(const char *what) {
  fprintf(stderr, "emulation: %s (block %u %u %u)\n", what, block->index.x, block->index.y, block->index.z);
  abort();
}

inline void wait(State at) {
  block->running->state = at;
  swapcontext(&block->running->context, &block->scheduler);
}

// Shows `mine` to the warp, waits for the others' and looks at them with `look`.
template <typename Look> auto exchange(const Shown &mine, Look look) {
  const unsigned flat = block->running->flat;
  auto &warp = block->shown[flat / LANES];
  warp[flat % LANES] = mine;
  wait(State::AtWarp);
  auto seen = look(warp);
  wait(State::AtWarp);
  return seen;
}

inline void land(const std::vector<Copy> &group) {
  for (const Copy &copy : group) {
    if (reinterpret_cast<uintptr_t>(copy.to) % 16 || reinterpret_cast<uintptr_t>(copy.from) % 16)
      fail("a copy of 16 bytes is not aligned");
    if (copy.wanted)
      memcpy(copy.to, copy.from, 16);
    else
      memset(copy.to, 0, 16);
  }
}

void launch(dim3 grid, dim3 size, size_t shared, const std::function<void()> &kernel);

// Software conversions, to the nearest, ties to even.
inline uint32_t bits(float x) {
  uint32_t all;
  memcpy(&all, &x, 4);
  return all;
}
inline float from_bits(uint32_t all) {
  float x;
  memcpy(&x, &all, 4);
  return x;
}

inline uint16_t half_bits(float x) {
  const uint32_t sign = bits(x) >> 16 & 0x8000, rest = bits(x) & 0x7fffffff;
  if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (rest >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);
  if (rest < 0x38800000) {
    // Below the smallest normal value: the value in units of 2^-24, rounded by the addition of 2^23 units.
    const float shifted = from_bits(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (bits(shifted) - bits(0.5f)));
  }
  const uint32_t even = rest + 0xfff + (rest >> 13 & 1);
  return static_cast<uint16_t>(sign | ((even - 0x38000000) >> 13));
}

inline float half_value(uint16_t all) {
  const uint32_t sign = static_cast<uint32_t>(all & 0x8000) << 16;
  const uint32_t exponent = all >> 10 & 0x1f, fraction = all & 0x3ff;
  if (exponent == 0) return from_bits(sign | bits(fraction * 0x1p-24f));
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16_t bfloat_bits(float x) {
  const uint32_t all = bits(x);
  if ((all & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return static_cast<uint16_t>((all + 0x7fff + (all >> 16 & 1)) >> 16);
}

}  // namespace emulation

#define threadIdx (emulation::block->running->index)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)
#define DYNAMIC_SHARED(name) unsigned char *name = emulation::dynamic_shared

struct f16 {
  uint16_t all;
};
struct bf16 {
  uint16_t all;
};

inline float wide(f16 x) { return emulation::half_value(x.all); }
inline float wide(bf16 x) { return emulation::from_bits(static_cast<uint32_t>(x.all) << 16); }
template <typename T> T narrow(float x);
template <> inline f16 narrow<f16>(float x) { return {emulation::half_bits(x)}; }
template <> inline bf16 narrow<bf16>(float x) { return {emulation::bfloat_bits(x)}; }

inline uint32_t pack(f16 low, f16 high) { return low.all | static_cast<uint32_t>(high.all) << 16; }
inline uint32_t pack(bf16 low, bf16 high) { return low.all | static_cast<uint32_t>(high.all) << 16; }

inline void __syncthreads() { emulation::wait(emulation::State::AtBlock); }

inline float __shfl_xor_sync(unsigned mask, float x, int lanes) {
  if (mask != 0xffffffffu) emulation::fail("a shuffle of a part of a warp");
  const unsigned other = (emulation::block->running->flat % emulation::LANES) ^ lanes;
  emulation::Shown mine{};
  mine.words[0] = emulation::bits(x);
  return emulation::exchange(mine, [&](const std::vector<emulation::Shown> &warp) {
    return emulation::from_bits(warp[other].words[0]);
  });
}

// mma.m16n8k16, by the layout that tensor_core.cuh states.
template <typename T> void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::Shown mine{};
  memcpy(mine.words, a, 16);
  memcpy(mine.words + 4, b, 8);
  const unsigned lane = emulation::block->running->flat % emulation::LANES;
  const auto value = [](uint32_t pair, unsigned which) {
    return wide(T{static_cast<uint16_t>(which ? pair >> 16 : pair & 0xffff)});
  };
  emulation::exchange(mine, [&](const std::vector<emulation::Shown> &warp) {
    for (int i = 0; i < 4; i++) {
      const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0.0f;
      for (unsigned k = 0; k < 16; k++) {
        const uint32_t left = warp[row % 8 * 4 + k % 8 / 2].words[row / 8 + k / 8 * 2];
        const uint32_t right = warp[column * 4 + k % 8 / 2].words[4 + k / 8];
        sum += value(left, k % 2) * value(right, k % 2);
      }
      c[i] += sum;
    }
    return 0;
  });
}

inline void load_matrices_any(uint32_t (&to)[4], const void *row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("a matrix row is not aligned");
  emulation::Shown mine{};
  mine.address = row;
  const unsigned lane = emulation::block->running->flat % emulation::LANES;
  emulation::exchange(mine, [&](const std::vector<emulation::Shown> &warp) {
    for (unsigned matrix = 0; matrix < 4; matrix++) {
      const auto at = [&](unsigned row, unsigned column) {
        return static_cast<uint32_t>(static_cast<const uint16_t *>(warp[matrix * 8 + row].address)[column]);
      };
      const unsigned g = lane / 4, t = lane % 4 * 2;
      to[matrix] = transposed ? at(t, g) | at(t + 1, g) << 16 : at(g, t) | at(g, t + 1) << 16;
    }
    return 0;
  });
}
inline void load_matrices(uint32_t (&to)[4], const void *row) { load_matrices_any(to, row, false); }
inline void load_matrices_transposed(uint32_t (&to)[4], const void *row) { load_matrices_any(to, row, true); }

inline void copy_begin(void *to, const void *from, bool wanted) {
  const emulation::Copy copy{to, from, wanted};
  if (emulation::reversed)
    emulation::land({copy});
  else
    emulation::block->running->begun.push_back(copy);
}
inline void copy_group() {
  auto &fiber = *emulation::block->running;
  fiber.groups.push_back(std::move(fiber.begun));
  fiber.begun.clear();
}
template <int N> void copy_wait() {
  auto &groups = emulation::block->running->groups;
  while (groups.size() > N) {
    emulation::land(groups.front());
    groups.erase(groups.begin());
  }
}
