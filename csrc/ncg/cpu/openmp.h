// The executor of the plain library: OpenMP threads over contiguous ranges of chunks. (TensorFlow's op brings its own
// thread pool instead, so that the two never compete.)
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ncg::cpu {

struct OpenMp {
  int threads;
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
        // the team may be smaller than asked for
        const std::int64_t size = omp_get_num_threads();
        const std::int64_t me = omp_get_thread_num();
        f(count * me / size, count * (me + 1) / size);
      }
      return;
    }
#endif
    f(std::int64_t{0}, count);
  }
};

}  // namespace ncg::cpu
