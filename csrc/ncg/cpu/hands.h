// How threads share a pass: each takes the next few chunks until none are left. Threads then stay close in memory,
// which shares its open pages, and one that is held up elsewhere takes fewer. Who takes which does not show in any
// result.
#pragma once

#include <atomic>
#include <cstdint>

namespace ncg::cpu {

class Hands {
 public:
  Hands(std::int64_t count, std::int64_t threads) : count_(count) {
    const std::int64_t even = count / (4 * threads);
    hand_ = even < 1 ? 1 : (even < kMost ? even : kMost);
  }

  // Called by every thread; f(first, last).
  template <class F>
  void take(const F& f) {
    for (;;) {
      const std::int64_t first = next_.fetch_add(hand_, std::memory_order_relaxed);
      if (first >= count_) return;
      f(first, first + hand_ < count_ ? first + hand_ : count_);
    }
  }

 private:
  static constexpr std::int64_t kMost = 16;  // chunks: 64 K elements
  std::atomic<std::int64_t> next_{0};
  std::int64_t count_, hand_;
};

}  // namespace ncg::cpu
