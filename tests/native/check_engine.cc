// Runs the CUDA engine's own sources in the emulator and compares every operation with plain float64 loops, and whole
// solves with the CPU engine.
//
//   check_engine [--quick] [--seed N]
//
// Every operand is a heap block of exactly its size, aligned to no more than CUDA guarantees, so that a sanitizer sees
// each access outside it. Exits with 1 and says what differs.
#include "check_solve.h"

namespace {

std::vector<std::int64_t> random_lengths(int count, std::int64_t longest) {
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < count; ++i) {
    const std::int64_t limit = static_cast<std::int64_t>(
        std::pow(10.0, static_cast<double>(rng() % 1000) / 1000.0 * std::log10(static_cast<double>(longest))));
    lengths.push_back(limit < 1 ? 1 : limit);
  }
  return lengths;
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false;
  std::uint64_t seed = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--quick") quick = true;
    if (std::string(argv[i]) == "--seed" && i + 1 < argc) seed = std::strtoull(argv[++i], nullptr, 10);
  }
  rng.seed(seed);
  const std::vector<std::int64_t> quick_sizes = {1, 3, 255, 4097, 9001};
  const std::vector<std::int64_t> all_sizes = {1,   2,   3,    4,    5,    15,   16,   17,   31,   127,    255,
                                               256, 257, 1023, 4095, 4096, 4097, 8191, 8192, 8193, 100'003};
  std::vector<std::vector<std::int64_t>> tables = {{1}, {5, 1, 17}, {16, 16}, {4093, 7, 300}, {0, 3, 0, 40}};
  for (int count : {9, 161, 162}) tables.push_back(random_lengths(count, count > 100 ? 60 : 6000));
  if (!quick) {
    tables.push_back(random_lengths(2, 6000));
    tables.push_back(random_lengths(400, 60));
    tables.push_back(random_lengths(40, 100'000));
    tables.push_back(std::vector<std::int64_t>(700, 1));
  }
#define NCG_CHECK(name, Functor) check_types<ncg::Functor>(#name, &ncg_cuda_##name, n, lengths, seed);
  for (const std::int64_t n : quick ? quick_sizes : all_sizes) {
    const std::vector<std::int64_t> lengths;
    NCG_OPERATIONS(NCG_CHECK)
  }
  for (const auto& lengths : tables) {
    const std::int64_t n = 0;
    NCG_OPERATIONS(NCG_CHECK)
    check_unpack<float>(lengths, seed++);
    check_unpack<double>(lengths, seed++);
  }
#undef NCG_CHECK
  for (const Kind kind : {Kind::kPlain, Kind::kDeferred, Kind::kPreconditioned}) {
    check_solve<float>(kind, quick ? 777 : 9001, 0.0, 1.0, seed++);
    check_solve<float>(kind, 333, 0.0, 1e-25, seed++);
    check_solve<float>(kind, 333, 0.0, 1e25, seed++);
    check_solve<double>(kind, 777, 0.0, 1.0, seed++);
    check_solve<float>(kind, 777, -3.0, 1.0, seed++);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
