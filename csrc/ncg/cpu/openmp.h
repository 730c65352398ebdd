// The executor of the plain library: OpenMP threads. (TensorFlow's op brings its own thread pool instead, so that the
// two never compete.)
#pragma once

#include <cstdint>

#include "ncg/cpu/hands.h"

namespace ncg::cpu {

struct OpenMp {
  int threads;
  // 64 K elements, about 20 us of work: below, a second thread gives a few microseconds, and where its core is busy it
  // costs milliseconds.
  static constexpr std::int64_t kMinChunksPerThread = 16;

  template <class F>
  void operator()(std::int64_t count, const F& f) const {
#ifdef _OPENMP
    std::int64_t team = count / kMinChunksPerThread;
    if (team > threads) team = threads;
    if (team > 1) {
      Hands hands(count, team);
#pragma omp parallel num_threads(static_cast<int>(team))
      hands.take(f);
      return;
    }
#endif
    f(std::int64_t{0}, count);
  }
};

}  // namespace ncg::cpu
