// The executor of the plain library: OpenMP threads that take hands of chunks in turn. (TensorFlow's op brings its own
// thread pool instead, so that the two never compete.)
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ncg::cpu {

struct OpenMp {
  int threads;
  static constexpr std::int64_t kHand = 16;  // 64 K elements
  static constexpr std::int64_t kMinChunksPerThread =
      4;  // 16 K elements: below, waking a thread costs more than it gives

  template <class F>
  void operator()(std::int64_t count, const F& f) const {
#ifdef _OPENMP
    std::int64_t team = count / kMinChunksPerThread;
    if (team > threads) team = threads;
    if (team > 1) {
#pragma omp parallel num_threads(static_cast<int>(team))
      {
        // In turn, not in one share each: threads that stay close in memory share its open pages. The team may be
        // smaller than asked for.
        const std::int64_t size = omp_get_num_threads();
        for (std::int64_t at = omp_get_thread_num() * kHand; at < count; at += size * kHand) {
          f(at, at + kHand < count ? at + kHand : count);
        }
      }
      return;
    }
#endif
    f(std::int64_t{0}, count);
  }
};

}  // namespace ncg::cpu
