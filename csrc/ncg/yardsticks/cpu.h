// What the CPU's yardsticks need of the threads.
#pragma once

#include <cstdint>

#include "ncg/yardsticks/shapes.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ncg::yardsticks {

// A thread's contiguous share of [0, n), on multiples of a cache line.
struct Share {
  std::int64_t me, team, begin, end;
};

inline Share my_share(std::int64_t n) {
#ifdef _OPENMP
  const std::int64_t team = omp_get_num_threads();
  const std::int64_t me = omp_get_thread_num();
#else
  const std::int64_t team = 1;
  const std::int64_t me = 0;
#endif
  const std::int64_t lines = n / 16;
  return {me, team, lines * me / team * 16, me + 1 == team ? n : lines * (me + 1) / team * 16};
}

}  // namespace ncg::yardsticks
