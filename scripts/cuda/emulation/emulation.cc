// The scheduler of fibers that emulation.h describes.
#include "emulation.h"

namespace emulation {

Block *block = nullptr;
unsigned char *dynamic_shared = nullptr;
bool reversed = false;

namespace {

void enter() {
  block->kernel();
  block->running->state = State::Done;
  swapcontext(&block->running->context, &block->scheduler);
}

void start(Fiber &fiber) {
  if (!fiber.stack) fiber.stack.reset(new char[STACK]);
  fiber.state = State::Ready;
  fiber.begun.clear();
  fiber.groups.clear();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = STACK;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Lets a warp go on if all of its threads wait for each other.
bool open_warp(Block &now, size_t first, size_t end) {
  if (end - first != LANES) return false;
  for (size_t i = first; i < end; i++)
    if (now.fibers[i].state != State::AtWarp) return false;
  for (size_t i = first; i < end; i++) now.fibers[i].state = State::Ready;
  return true;
}

// Lets the block go on if all of its threads have come; those that ended count as come, as on a GPU.
bool open_block(Block &now) {
  for (const Fiber &fiber : now.fibers)
    if (fiber.state != State::AtBlock && fiber.state != State::Done) return false;
  for (Fiber &fiber : now.fibers)
    if (fiber.state == State::AtBlock) fiber.state = State::Ready;
  return true;
}

void run(Block &now) {
  for (Fiber &fiber : now.fibers) start(fiber);
  const size_t count = now.fibers.size(), warps = (count + LANES - 1) / LANES;
  for (;;) {
    // A warp goes as far as it can before the next begins, so that nothing but a barrier of the block orders two warps.
    for (size_t turn = 0; turn < warps; turn++) {
      const size_t first = (reversed ? warps - 1 - turn : turn) * LANES;
      const size_t end = first + LANES < count ? first + LANES : count;
      do {
        for (size_t i = 0; i < end - first; i++) {
          Fiber &fiber = now.fibers[reversed ? end - 1 - i : first + i];
          if (fiber.state != State::Ready) continue;
          now.running = &fiber;
          swapcontext(&now.scheduler, &fiber.context);
        }
      } while (open_warp(now, first, end));
    }
    size_t done = 0;
    for (const Fiber &fiber : now.fibers) done += fiber.state == State::Done;
    if (done == count) return;
    if (!open_block(now)) fail("threads wait for others that do not come");
  }
}

}  // namespace

void launch(dim3 grid, dim3 size, size_t shared, const std::function<void()> &kernel) {
  Block now;
  now.size = size;
  now.grid = grid;
  now.kernel = kernel;
  now.fibers = std::vector<Fiber>(static_cast<size_t>(size.x) * size.y * size.z);
  now.shown.assign(now.fibers.size() / LANES + 1, std::vector<Shown>(LANES));
  for (unsigned i = 0; i < now.fibers.size(); i++) {
    now.fibers[i].flat = i;
    now.fibers[i].index.x = i % size.x;
    now.fibers[i].index.y = i / size.x % size.y;
    now.fibers[i].index.z = i / size.x / size.y;
  }
  block = &now;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        // Exactly as large as the launch gave, and with nothing sensible in it.
        std::vector<unsigned char> memory(shared, 0xff);
        dynamic_shared = memory.data();
        now.index.x = x;
        now.index.y = y;
        now.index.z = z;
        run(now);
      }
  block = nullptr;
}

}  // namespace emulation
