// Runs a CUDA kernel on the CPU, to find its mistakes without a GPU.
//
// Every CUDA thread is a fiber with a stack of its own and a guard page. A seeded random scheduler runs the fibers of a
// few blocks at a time, switching wherever CUDA orders nothing: at barriers, shuffles, fences and atomics. Threads that
// wait for each other in vain are reported as a deadlock. Under ThreadSanitizer the fibers are known to it and ordered
// by nothing but barriers and fences, so that a missing one shows as a data race; under AddressSanitizer accesses
// outside an operand or a shared array show.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulator {

struct Index {
  unsigned x;
};
struct Thread {
  Index thread;
  Index block;
};

Thread current_thread();
Index grid_size();
void* shared(const void* site, std::size_t bytes);
void barrier();
void fence();
void yield();
void shuffle_down(unsigned mask, void* value, std::size_t bytes, int offset, int width);

// Runs the kernel to its end, in an order drawn from the seed.
void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel);
void set_seed(std::uint64_t seed);

}  // namespace emulator
