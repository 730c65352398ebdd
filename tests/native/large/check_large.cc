// The CUDA engine at indices beyond 2^31 and 2^32: a few blocks of its grid over virtual memory, where all is zero but
// what those blocks see. Numbers are small integers, so that every sum is exact in any order.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ncg/cuda/launch.h"
#include "some_blocks.h"

namespace {

using std::int64_t;

constexpr int64_t kHalf = int64_t{1} << 31;
constexpr int64_t kFull = int64_t{1} << 32;
constexpr int64_t kLength = kFull + 5 * ncg::kChunk + 1000;
constexpr unsigned kGrid = 1u << 20;  // the engine's largest

std::mt19937_64 rng(5);
int checks = 0;
int failures = 0;

void expect(bool ok, const std::string& what) {
  ++checks;
  if (!ok) {
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  }
}

template <class T>
struct Virtual {
  T* at;
  std::size_t bytes;

  explicit Virtual(int64_t n) : bytes(static_cast<std::size_t>(n) * sizeof(T)) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::fprintf(stderr, "no address space\n");
      std::exit(77);
    }
    at = static_cast<T*>(memory);
  }
  Virtual(const Virtual&) = delete;
  ~Virtual() { munmap(at, bytes); }
};

// bfloat16 has room for these, too
template <class T>
T small() {
  return static_cast<T>(static_cast<int>(rng() % 7) - 3);
}
template <>
ncg::Bfloat16 small<ncg::Bfloat16>() {
  const float wide = small<float>();
  std::uint32_t bits;
  std::memcpy(&bits, &wide, sizeof(bits));
  return {static_cast<std::uint16_t>(bits >> 16)};
}

// The index ranges [begin, end) that the chosen blocks work on.
std::vector<std::pair<int64_t, int64_t>> choose_blocks(bool reversed) {
  some_blocks::chosen = {0, 1, 5, kGrid / 2 - 1, kGrid / 2, kGrid / 2 + 1, kGrid - 1};
  std::shuffle(some_blocks::chosen.begin(), some_blocks::chosen.end(), rng);
  const int64_t chunks = (kLength + ncg::kChunk - 1) / ncg::kChunk;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const unsigned block : some_blocks::chosen) {
    for (int64_t turn = block; turn < chunks; turn += kGrid) {
      const int64_t begin = (reversed ? chunks - 1 - turn : turn) * ncg::kChunk;
      ranges.emplace_back(begin, std::min(begin + ncg::kChunk, kLength));
    }
  }
  return ranges;
}

// Segments up to the length of the vectors: long ones first, then short ones beyond 2^32, at odd addresses.
template <class F>
std::vector<ncg::Segment> segments_of(int64_t count, F* base) {
  std::vector<ncg::Segment> segments;
  int64_t offset = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t length = s < 8 ? kFull / 8 - (s % 2) * 32 - 3 : (s + 1 < count ? s % 45 + 1 : kLength - offset - 7);
    segments.push_back({base + offset + s * ncg::kLanes + s % 4, offset, length});
    offset += (length + ncg::kLanes - 1) / ncg::kLanes * ncg::kLanes;
  }
  return segments;
}

template <class F>
double widened(F value) {
  return static_cast<double>(ncg::widen(value));
}

using Launch = const char* (*)(ncg::Dtype, const ncg::Call*);

template <template <class> class Functor, class T, class F>
void check(const char* name, Launch launch, int64_t tensors) {
  using Op = Functor<T>;
  constexpr int K = Op::kVectors;
  constexpr int S = Op::kSums;
  const std::string what =
      std::string(name) + ", " + std::to_string(sizeof(F)) + " bytes, " + std::to_string(tensors) + " tensors";
  const auto ranges = choose_blocks(Op::kReversed);
  Virtual<F> first(kLength + (tensors + 1) * ncg::kLanes);
  std::vector<ncg::Segment> segments = segments_of(tensors, first.at);
  std::vector<Virtual<T>*> vectors;
  for (int k = 0; k < K; ++k) vectors.push_back(k == 0 ? nullptr : new Virtual<T>(kLength));
  std::vector<std::vector<double>> exact;  // written vectors, element by element of the ranges
  double sums[ncg::kMaxSums] = {};
  ncg::Scalars scalars{{0.5, 0.25, 2.0, 0.5, 0.0, 0.0}, kLength};
  const Functor<double> op = Functor<double>::from_params(scalars);
  for (const auto& [begin, end] : ranges) {
    for (int64_t i = begin; i < end; ++i) {
      double v[K] = {};
      if (tensors > 0) {
        for (const ncg::Segment& s : segments) {
          if (s.offset <= i && i < s.offset + s.length) {
            auto* there = static_cast<F*>(const_cast<void*>(s.data)) + (i - s.offset);
            *there = small<F>();
            v[0] = widened(*there);
          }
        }
      } else {
        first.at[i] = small<F>();
        v[0] = widened(first.at[i]);
      }
      for (int k = 1; k < K; ++k) {
        vectors[k]->at[i] = small<T>();
        v[k] = vectors[k]->at[i];
      }
      double terms[ncg::kMaxSums] = {};
      op(v, terms);
      for (int m = 0; m < S; ++m) sums[m] += terms[m];
      exact.emplace_back(v, v + K);
    }
  }
  Virtual<double> partials(ncg::partials_size(kLength) + ncg_cuda_table_bytes(tensors) / 8);
  double out[ncg::kMaxSums] = {-1, -1, -1, -1};
  // as if all other blocks had been there before
  unsigned ticket[2] = {kGrid - static_cast<unsigned>(some_blocks::chosen.size()), 0};
  ncg::Call call{};
  call.operand[0] = first.at;
  for (int k = 1; k < K; ++k) call.operand[k] = vectors[k]->at;
  call.table = {segments.data(), tensors};
  call.n = kLength;
  for (int c = 0; c < ncg::kMaxParams; ++c) call.params[c] = scalars.at[c];
  call.out = out;
  call.partials = partials.at;
  call.ticket = ticket;
  const auto dtype = sizeof(F) == 2   ? ncg::Dtype::kBfloat16First
                     : sizeof(F) == 4 ? ncg::Dtype::kFloat32
                                      : ncg::Dtype::kFloat64;
  const char* error = launch(dtype, &call);
  expect(error == nullptr, what + ": " + (error != nullptr ? error : ""));
  expect(some_blocks::grid == kGrid, what + ": another grid than this check is made for");
  expect(ticket[0] == 0, what + ": the ticket");
  for (int m = 0; m < S; ++m) {
    expect(out[m] == sums[m],
           what + ": sum " + std::to_string(m) + " is " + std::to_string(out[m]) + ", not " + std::to_string(sums[m]));
  }
  int64_t wrong = 0, outside = 0, element = 0;
  for (const auto& [begin, end] : ranges) {
    for (int64_t i = begin; i < end; ++i, ++element) {
      for (int k = K - Op::kWritten; k < K; ++k) wrong += vectors[k]->at[i] != exact[element][k];
    }
    for (int k = K - Op::kWritten; k < K; ++k) {  // nothing beyond the ends
      for (const int64_t i : {begin - 1, end}) {
        const bool of_a_range = std::any_of(ranges.begin(), ranges.end(),
                                            [i](const auto& range) { return range.first <= i && i < range.second; });
        outside += i >= 0 && i < kLength && !of_a_range && vectors[k]->at[i] != 0;
      }
    }
  }
  expect(wrong == 0 && outside == 0, what + ": " + std::to_string(wrong + outside) + " elements differ");
  for (auto* vector : vectors) delete vector;
}

template <class T>
void check_unpack(int64_t tensors) {
  const auto ranges = choose_blocks(false);
  Virtual<T> flat(kLength), there(kLength + (tensors + 1) * ncg::kLanes);
  std::vector<ncg::Segment> segments = segments_of(tensors, there.at);
  Virtual<double> partials(ncg::partials_size(kLength) + ncg_cuda_table_bytes(tensors) / 8);
  for (const auto& [begin, end] : ranges) {
    for (int64_t i = begin; i < end; ++i) flat.at[i] = static_cast<T>(1 + rng() % 7);
  }
  ncg::Call call{};
  call.operand[1] = flat.at;
  call.table = {segments.data(), tensors};
  call.n = kLength;
  call.params[0] = 0.5;
  call.partials = partials.at;
  ncg_cuda_unpack(sizeof(T) == 4 ? ncg::Dtype::kFloat32 : ncg::Dtype::kFloat64, &call);
  int64_t wrong = 0, compared = 0;
  for (const auto& [begin, end] : ranges) {
    for (const ncg::Segment& s : segments) {
      for (int64_t i = std::max(begin, s.offset); i < std::min(end, s.offset + s.length); ++i, ++compared)
        wrong += static_cast<const T*>(s.data)[i - s.offset] != static_cast<T>(0.5) * flat.at[i];
    }
  }
  expect(wrong == 0 && compared > 7 * ncg::kChunk, "unpack: " + std::to_string(wrong) + " elements differ");
}

void check_find_segment() {
  for (const int64_t count : {int64_t{1}, int64_t{9}, int64_t{161}, int64_t{200}}) {
    const auto segments = segments_of<float>(count, nullptr);
    std::vector<int64_t> indices = {0, kHalf - 1, kHalf, kFull - 1, kFull, kFull + 1, int64_t{1} << 45};
    for (const auto& s : segments) indices.insert(indices.end(), {s.offset - 1, s.offset, s.offset + s.length});
    for (const int64_t i : indices) {
      int64_t last = -1;
      for (int64_t s = 0; s < count; ++s) {
        if (segments[s].offset <= i) last = s;
      }
      expect(ncg::find_segment(segments.data(), count, i) == last, "find_segment at " + std::to_string(i));
      for (const int64_t hint : {int64_t{-1}, int64_t{0}, last - 1, last, last + 1, count - 1, count}) {
        expect(ncg::find_segment_near(segments.data(), count, i, hint) == last,
               "find_segment_near at " + std::to_string(i) + " with hint " + std::to_string(hint));
      }
    }
  }
  for (const int64_t n : {kHalf - 1, kHalf, kHalf + 1, kFull + 1, int64_t{1} << 45}) {
    expect(ncg::chunk_count(n) == n / ncg::kChunk + (n % ncg::kChunk != 0), "chunk_count of " + std::to_string(n));
  }
}

}  // namespace

int main() {
  check_find_segment();
  for (const int64_t tensors : {0, 100, 200}) {
    check<ncg::DampedCurvature, float, float>("damped_curvature", &ncg_cuda_damped_curvature, tensors);
    check<ncg::DampedCurvature, double, double>("damped_curvature", &ncg_cuda_damped_curvature, tensors);
    check<ncg::DampedCurvature, float, ncg::Bfloat16>("damped_curvature", &ncg_cuda_damped_curvature, tensors);
    check<ncg::CgUpdate, float, float>("cg_update", &ncg_cuda_cg_update, tensors);
    check<ncg::CgUpdate, double, double>("cg_update", &ncg_cuda_cg_update, tensors);
    if (tensors > 0) check_unpack<float>(tensors);
    if (tensors > 0) check_unpack<double>(tensors);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
