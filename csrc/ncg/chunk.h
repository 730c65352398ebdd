// How every engine cuts a vector, so that a sum depends on nothing but the vector.
//
// An index range is cut into chunks of kChunk elements, a chunk into runs of kRun. Inside a run, float32 sums stay in
// float32; everything beyond a run is added in float64, in a fixed order. The partial sums of the chunks are added in
// chunk order by whoever finishes last. Hence a sum does not depend on thread count or SM count, nor on whether H·p
// came as one array or as a table of tensors.
#pragma once

#include <cstdint>

#include "ncg/macros.h"

namespace ncg {

constexpr std::int64_t kChunk = 4096;  // fills a GPU from n = 1e5 on; 64 KiB of cg_update's four float32 vectors
constexpr std::int64_t kRun = 256;     // float32 terms added in float32: relative error of a run <= 16 eps
constexpr std::int64_t kLanes = 16;    // independent accumulators of a run; also the alignment of a table's segments
constexpr int kMaxVectors = 8;         // of one operation
constexpr int kMaxSums = 4;            // of one operation
constexpr int kMaxParams = 6;          // of one operation

NCG_HD constexpr std::int64_t chunk_count(std::int64_t n) { return (n + kChunk - 1) / kChunk; }

}  // namespace ncg
