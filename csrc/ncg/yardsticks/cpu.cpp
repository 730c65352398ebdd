// The CPU's yardsticks, each written in several ways of which a benchmark takes the fastest.
#include "ncg/yardsticks/cpu.h"

#include <cstring>

#include "ncg/macros.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ncg::yardsticks {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kBlock = 4096;      // float32 terms summed in float32: 64 a lane and accumulator
constexpr std::int64_t kAhead = 2048 / 4;  // elements that a prefetch runs ahead
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

// Past the caches, where the target has such stores: 16 bytes at a time, which the core combines to whole lines.
NCG_HD void store_past_caches(float* at, const Vector& value) {
#if defined(__SSE2__)
  __m128 part[4];
  std::memcpy(part, &value, sizeof(value));
  for (int j = 0; j < 4; ++j) _mm_stream_ps(at + 4 * j, part[j]);
#else
  *reinterpret_cast<Unaligned*>(at) = value;
#endif
}

NCG_HD void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// kPast: vectors that are stored and not loaded go past the caches, which saves reading their lines first.
template <int R, int W, int K, bool kPrefetch, bool kPast>
NCG_CLONES double stream_range(float* const* operand, std::int64_t begin, std::int64_t end, float scale) {
  constexpr int kUnroll = 4;
  float* at[K];
  for (int k = 0; k < K; ++k) at[k] = operand[k];
  double total = 0.0;
  for (std::int64_t block = begin; block < end; block += kBlock) {
    const std::int64_t stop = end - block < kBlock ? end : block + kBlock;
    Vector acc[kUnroll] = {};
    std::int64_t i = block;
    for (; i + kUnroll * kLanes <= stop; i += kUnroll * kLanes) {
#pragma GCC unroll 8
      for (int u = 0; u < kUnroll; ++u) {
        const std::int64_t j = i + u * kLanes;
        Vector v[K];
#pragma GCC unroll 8
        for (int k = 0; k < R; ++k) {
          v[k] = *reinterpret_cast<const Unaligned*>(at[k] + j);
          if (kPrefetch) __builtin_prefetch(at[k] + j + kAhead, k >= K - W ? 1 : 0);
        }
        Vector terms = v[0];
#pragma GCC unroll 8
        for (int k = 1; k < R; ++k) terms += v[k];
        acc[u] += terms;
#pragma GCC unroll 8
        for (int k = K - W; k < K; ++k) {
          const Vector value = scale * v[k < R ? k : 0];
          if (kPast && k >= R) {
            store_past_caches(at[k] + j, value);
          } else {
            *reinterpret_cast<Unaligned*>(at[k] + j) = value;
          }
        }
      }
    }
    float tail = 0.0f;
    for (; i < stop; ++i) {
      const float first = at[0][i];
      for (int k = 0; k < R; ++k) tail += at[k][i];
      for (int k = K - W; k < K; ++k) at[k][i] = scale * (k < R ? at[k][i] : first);
    }
    const Vector acc_all = (acc[0] + acc[1]) + (acc[2] + acc[3]);
    double sum = tail;
    for (int j = 0; j < kLanes; ++j) sum += static_cast<double>(acc_all[j]);
    total += sum;
  }
  return total;
}

NCG_CLONES void copy_range(float* target, const float* source, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    *reinterpret_cast<Unaligned*>(target + i) = *reinterpret_cast<const Unaligned*>(source + i);
  }
  for (; i < count; ++i) target[i] = source[i];
}

NCG_CLONES void copy_range_past_caches(float* target, const float* source, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store_past_caches(target + i, *reinterpret_cast<const Unaligned*>(source + i));
  }
  for (; i < count; ++i) target[i] = source[i];
  fence();
}

// The threads take contiguous shares, or (kDealt) blocks in turn, which keeps their streams close in memory.
template <int R, int W, int K, bool kPrefetch, bool kPast, bool kDealt>
double run(const Stream& call) {
  double total = 0.0;
#pragma omp parallel num_threads(call.threads) reduction(+ : total)
  {
    const Share share = my_share(call.n);
    if (kDealt) {
      constexpr std::int64_t kHand = 16 * kBlock;
      for (std::int64_t at = share.me * kHand; at < call.n; at += share.team * kHand) {
        const std::int64_t end = call.n - at < kHand ? call.n : at + kHand;
        total += stream_range<R, W, K, kPrefetch, kPast>(call.operand, at, end, call.scale);
      }
    } else {
      total += stream_range<R, W, K, kPrefetch, kPast>(call.operand, share.begin, share.end, call.scale);
    }
    if (kPast) fence();
  }
  return total;
}

template <int R, int W, int K>
const char* run_variant(const Stream& call) {
  switch (call.variant) {
    case 0:
      *call.sum = run<R, W, K, false, false, false>(call);
      return nullptr;
    case 1:
      *call.sum = run<R, W, K, true, false, false>(call);
      return nullptr;
    case 2:
      *call.sum = run<R, W, K, false, false, true>(call);
      return nullptr;
    case 3:
      *call.sum = run<R, W, K, false, (K > R), false>(call);
      return nullptr;
    default:
      return "no such variant of the stream";
  }
}

}  // namespace
}  // namespace ncg::yardsticks

const char* ncg_cpu_stream(const ncg::yardsticks::Stream& call) {
  using namespace ncg::yardsticks;
#define NCG_STREAM(R, W, K) \
  if (call.reads == R && call.writes == W && call.vectors == K) return run_variant<R, W, K>(call);
  NCG_STREAM_SHAPES(NCG_STREAM)
#undef NCG_STREAM
  return "no stream of this shape; add it to csrc/ncg/yardsticks/shapes.h";
}

const char* ncg_cpu_copy(const ncg::yardsticks::Stream& call) {
  using namespace ncg::yardsticks;
  if (call.variant < 0 || call.variant > 2) return "no such variant of the copy";
#pragma omp parallel num_threads(call.threads)
  {
    const Share share = my_share(call.n);
    float* target = call.operand[1] + share.begin;
    const float* source = call.operand[0] + share.begin;
    const std::int64_t count = share.end - share.begin;
    if (call.variant == 0) {
      copy_range(target, source, count);
    } else if (call.variant == 1) {
      copy_range_past_caches(target, source, count);
    } else if (count > 0) {
      std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(float));
    }
  }
  return nullptr;
}
