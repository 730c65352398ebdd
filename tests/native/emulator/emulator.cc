// Compiled without -fsanitize=thread in every build: the emulator's own memory is not the kernel's.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(NCG_EMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* addr);
void __tsan_release(void* addr);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr std::size_t kResidentBlocks = 3;
constexpr int kMaxShared = 8;

enum class Wait { kNothing, kBarrier, kShuffle, kEnd };

struct Block;

struct Fiber {
  ucontext_t context;
  Thread who;
  Block* block = nullptr;
  Wait wait = Wait::kNothing;
  char* stack = nullptr;
  void* tsan = nullptr;
  void* asan_fake_stack = nullptr;
  // of a shuffle
  unsigned mask = 0;
  int source = 0;
  unsigned char sent[16];
  unsigned char received[16];
  std::size_t bytes = 0;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  struct Shared {
    const void* site;
    void* memory;
  } shared[kMaxShared] = {};  // not a container: a fiber must not allocate what the scheduler frees
  char barrier_clock = 0;
  char shared_clock = 0;
};

std::mt19937_64 random_engine(1);
ucontext_t scheduler;
void* scheduler_tsan = nullptr;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_size = 0;
Fiber* running = nullptr;
unsigned grid = 0;
const std::function<void()>* kernel_body = nullptr;
char fence_clock = 0;
char launch_clock = 0;

void acquire([[maybe_unused]] char* clock) {
#if defined(NCG_EMULATOR_TSAN)
  __tsan_acquire(clock);
#endif
}
void release([[maybe_unused]] char* clock) {
#if defined(NCG_EMULATOR_TSAN)
  __tsan_release(clock);
#endif
}

// Not memcpy and memset: sanitizers intercept those, and would take the emulator's copies for the kernel's.
void copy_bytes(void* to, const void* from, std::size_t bytes) {
  auto* out = static_cast<volatile unsigned char*>(to);
  const auto* in = static_cast<const unsigned char*>(from);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = in[i];
}

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "emulator: %s\n", what.c_str());
  std::_Exit(97);
}

void switch_to_scheduler([[maybe_unused]] bool for_good = false) {
  Fiber* self = running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &self->asan_fake_stack, scheduler_stack, scheduler_stack_size);
#endif
#if defined(NCG_EMULATOR_TSAN)
  __tsan_switch_to_fiber(scheduler_tsan, 1);  // 1: no synchronisation by the switch
#endif
  swapcontext(&self->context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->asan_fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  acquire(&launch_clock);
  (*kernel_body)();
  release(&launch_clock);
  running->wait = Wait::kEnd;
  switch_to_scheduler(true);
}

void resume(Fiber* fiber) {
  running = fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber->stack, kStack);
#endif
#if defined(NCG_EMULATOR_TSAN)
  __tsan_switch_to_fiber(fiber->tsan, 1);
#endif
  swapcontext(&scheduler, &fiber->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
  running = nullptr;
}

std::vector<char*> free_stacks;

char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for stacks");
  mprotect(memory, page, PROT_NONE);  // a stack overflow faults here
  return static_cast<char*>(memory) + page;
}

std::unique_ptr<Block> make_block(unsigned index, unsigned threads) {
  auto block = std::make_unique<Block>();
  for (unsigned t = 0; t < threads; ++t) {
    auto fiber = std::make_unique<Fiber>();
    fiber->who = {{t}, {index}};
    fiber->block = block.get();
    fiber->stack = take_stack();
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, entry, 0);
#if defined(NCG_EMULATOR_TSAN)
    fiber->tsan = __tsan_create_fiber(0);
#endif
    block->fibers.push_back(std::move(fiber));
  }
  return block;
}

// All but the shared memory, which goes at the end of the launch: freeing it here would need an order between this
// block and those to come, which the sanitizer would then believe in.
void free_block(Block& block) {
  for (auto& fiber : block.fibers) {
#if defined(NCG_EMULATOR_TSAN)
    __tsan_destroy_fiber(fiber->tsan);
#endif
    free_stacks.push_back(fiber->stack);
  }
}

// A barrier opens when every thread of the block that has not ended waits at it.
bool open_barrier(Block& block) {
  bool any = false;
  for (auto& fiber : block.fibers) {
    if (fiber->wait == Wait::kBarrier) {
      any = true;
    } else if (fiber->wait != Wait::kEnd) {
      return false;
    }
  }
  if (!any) return false;
  for (auto& fiber : block.fibers) {
    if (fiber->wait == Wait::kBarrier) fiber->wait = Wait::kNothing;
  }
  return true;
}

// A shuffle happens when every lane of its mask waits at one with the same mask.
bool complete_shuffles(Block& block) {
  bool any = false;
  for (std::size_t first = 0; first < block.fibers.size(); first += 32) {
    for (int lane = 0; lane < 32 && first + lane < block.fibers.size(); ++lane) {
      Fiber& asking = *block.fibers[first + lane];
      if (asking.wait != Wait::kShuffle) continue;
      bool ready = true;
      for (int other = 0; other < 32; ++other) {
        if ((asking.mask >> other & 1u) == 0) continue;
        if (first + other >= block.fibers.size()) fail("a shuffle's mask names lanes that do not exist");
        const Fiber& partner = *block.fibers[first + other];
        ready = ready && partner.wait == Wait::kShuffle && partner.mask == asking.mask;
      }
      if (!ready) continue;
      for (int other = 0; other < 32; ++other) {
        if ((asking.mask >> other & 1u) == 0) continue;
        Fiber& partner = *block.fibers[first + other];
        if (partner.bytes != asking.bytes) fail("lanes of one shuffle exchange different types");
        copy_bytes(partner.received, block.fibers[first + partner.source]->sent, partner.bytes);
      }
      for (int other = 0; other < 32; ++other) {
        if (asking.mask >> other & 1u) block.fibers[first + other]->wait = Wait::kNothing;
      }
      any = true;
    }
  }
  return any;
}

bool ended(const Block& block) {
  for (const auto& fiber : block.fibers) {
    if (fiber->wait != Wait::kEnd) return false;
  }
  return true;
}

}  // namespace

Thread current_thread() { return running->who; }
Index grid_size() { return {grid}; }
void set_seed(std::uint64_t seed) { random_engine.seed(seed); }

void* shared(const void* site, std::size_t bytes) {
  int place = 0;
  auto& arrays = running->block->shared;
  while (place < kMaxShared && arrays[place].site != nullptr && arrays[place].site != site) ++place;
  if (place == kMaxShared) fail("too many shared arrays");
  arrays[place].site = site;
  void*& memory = arrays[place].memory;
  if (memory == nullptr) {
    memory = std::malloc(bytes);
    for (std::size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(memory)[i] = 0xff;
    release(&running->block->shared_clock);
  }
  acquire(&running->block->shared_clock);  // of the allocation only: it comes before all use
  return memory;
}

void barrier() {
  release(&running->block->barrier_clock);
  running->wait = Wait::kBarrier;
  switch_to_scheduler();
  acquire(&running->block->barrier_clock);
}

void fence() {
  release(&fence_clock);
  acquire(&fence_clock);
  yield();
}

void yield() { switch_to_scheduler(); }

void shuffle_down(unsigned mask, void* value, std::size_t bytes, int offset, int width) {
  Fiber& self = *running;
  const int lane = static_cast<int>(self.who.thread.x % 32);
  if (bytes > sizeof(self.sent)) fail("a shuffle of more than 16 bytes");
  if ((mask >> lane & 1u) == 0) fail("a shuffle by a lane outside its mask");
  const int segment_end = lane / width * width + width;
  self.mask = mask;
  self.source = lane + offset < segment_end ? lane + offset : lane;
  self.bytes = bytes;
  copy_bytes(self.sent, value, bytes);
  self.wait = Wait::kShuffle;
  switch_to_scheduler();
  copy_bytes(value, running->received, bytes);
}

void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  grid = blocks;
  kernel_body = &kernel;
#if defined(NCG_EMULATOR_TSAN)
  scheduler_tsan = __tsan_get_current_fiber();
#endif
  release(&launch_clock);
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random_engine);
  std::vector<std::unique_ptr<Block>> resident;
  std::vector<void*> finished;
  std::size_t next = 0;
  while (next < order.size() || !resident.empty()) {
    while (resident.size() < kResidentBlocks && next < order.size())
      resident.push_back(make_block(order[next++], threads));
    // one round: every thread that can run does, in random order
    std::vector<Fiber*> ready;
    for (auto& block : resident) {
      for (auto& fiber : block->fibers) {
        if (fiber->wait == Wait::kNothing) ready.push_back(fiber.get());
      }
    }
    std::shuffle(ready.begin(), ready.end(), random_engine);
    // now and then only a few of them, so that blocks drift apart
    if (random_engine() % 4 == 0) ready.resize((ready.size() + 7) / 8);
    for (Fiber* fiber : ready) resume(fiber);
    bool progress = !ready.empty();
    for (std::size_t i = 0; i < resident.size();) {
      progress = complete_shuffles(*resident[i]) || progress;
      progress = open_barrier(*resident[i]) || progress;
      if (ended(*resident[i])) {
        free_block(*resident[i]);
        for (const auto& array : resident[i]->shared) finished.push_back(array.memory);
        resident.erase(resident.begin() + static_cast<std::ptrdiff_t>(i));
        progress = true;
      } else {
        ++i;
      }
    }
    if (!progress) fail("deadlock: threads wait at different barriers or shuffles");
  }
  acquire(&launch_clock);
  for (void* memory : finished) std::free(memory);
}

}  // namespace emulator
