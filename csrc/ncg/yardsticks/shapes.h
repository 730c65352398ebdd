// Yardsticks: plain streams through memory, of the shape of an operation and nothing else. What a benchmark compares
// the engines with, so they share no code with them.
//
// A stream of shape (R reads, W writes, K vectors) loads the first R vectors and stores the last W; one that is both is
// updated in place. Every stored value is `scale` times what was loaded at its place, or times the first vector where
// nothing was. The sum of all loaded values comes out, so that no load can be left away.
#pragma once

#include <cstdint>

namespace ncg::yardsticks {

constexpr int kMaxVectors = 8;

// X(reads, writes, vectors): a shape that an operation has and that is missing here is one more line.
#define NCG_STREAM_SHAPES(X) \
  X(1, 0, 1)                 \
  X(1, 1, 1)                 \
  X(2, 0, 2)                 \
  X(1, 1, 2)                 \
  X(2, 1, 2)                 \
  X(3, 0, 3)                 \
  X(3, 1, 3)                 \
  X(3, 2, 3)                 \
  X(1, 2, 3)                 \
  X(4, 0, 4)                 \
  X(4, 1, 4)                 \
  X(4, 2, 4)                 \
  X(4, 3, 4)                 \
  X(1, 3, 4)                 \
  X(5, 3, 5)                 \
  X(2, 3, 5)                 \
  X(3, 3, 6)                 \
  X(8, 5, 8)

// One call: float32 vectors of n elements, aligned to 16 bytes.
struct Stream {
  int reads, writes, vectors;
  int variant;  // how it is written: 0 ... count of variants - 1
  float* operand[kMaxVectors];
  std::int64_t n;
  float scale;
  double* sum;   // where the operands live; GPU: added to what is there
  int threads;   // CPU only
  void* stream;  // cudaStream_t, GPU only
};

}  // namespace ncg::yardsticks

// Each returns null, or what is wrong.
const char* ncg_cpu_stream(const ncg::yardsticks::Stream& call);
const char* ncg_cpu_copy(const ncg::yardsticks::Stream& call);  // operand[1] = operand[0]
extern "C" const char* ncg_cuda_stream(const ncg::yardsticks::Stream* call);
