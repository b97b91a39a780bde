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

// Opens the barriers at which all that must come have come; says whether any opened.
bool open_barriers(Block &now) {
  bool any = false;
  const size_t count = now.fibers.size();
  for (size_t first = 0; first < count; first += LANES) {
    const size_t end = first + LANES < count ? first + LANES : count;
    size_t here = 0;
    for (size_t i = first; i < end; i++) here += now.fibers[i].state == State::AtWarp;
    if (here == 0 || here != LANES) continue;
    for (size_t i = first; i < end; i++) now.fibers[i].state = State::Ready;
    any = true;
  }
  size_t here = 0, done = 0;
  for (const Fiber &fiber : now.fibers) {
    here += fiber.state == State::AtBlock;
    done += fiber.state == State::Done;
  }
  // Threads that ended count as come, as on a GPU.
  if (here > 0 && here + done == count) {
    for (Fiber &fiber : now.fibers)
      if (fiber.state == State::AtBlock) fiber.state = State::Ready;
    any = true;
  }
  return any;
}

void run(Block &now) {
  for (Fiber &fiber : now.fibers) start(fiber);
  const size_t count = now.fibers.size();
  for (;;) {
    size_t done = 0;
    for (size_t i = 0; i < count; i++) {
      Fiber &fiber = now.fibers[reversed ? count - 1 - i : i];
      if (fiber.state == State::Ready) {
        now.running = &fiber;
        swapcontext(&now.scheduler, &fiber.context);
      }
      done += fiber.state == State::Done;
    }
    if (done == count) return;
    if (!open_barriers(now)) fail("threads wait for others that do not come");
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
