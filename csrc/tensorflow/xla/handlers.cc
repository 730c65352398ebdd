// The custom calls that the ops of ops.cc become: handlers of XLA's typed foreign function interface, on the CPU
// engine.
//
// A vector of a solve is a list of tensors here, one per variable: of a flat one, XLA would copy every slice.
#include <algorithm>
#include <cstring>
#include <vector>

#include "ncg/call.h"
#include "ncg/cpu/engine.h"
#include "ncg/operations.h"
#include "tensorflow/xla/pool.h"
#include "xla/ffi/api/c_api.h"
#include "xla/ffi/api/ffi.h"

namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();  // declared in xla/ffi/ffi_api.h, which does not compile from TensorFlow's package
}

namespace ncg::xla_cpu {
namespace {

namespace ffi = ::xla::ffi;
using Args = ffi::RemainingArgs;
using Rets = ffi::RemainingRets;

// The operands of a pass, in the operation's order; tensor i of each has lengths[i] elements.
struct Lists {
  std::vector<std::int64_t> lengths;
  std::vector<void*> operand[kMaxVectors];
};

// As cpu::run, the chunks being those of one tensor after the other.
template <class Op>
void run(const Lists& lists, Call call, const Pool& pool) {
  using T = typename Op::Scalar;
  std::vector<std::int64_t> first_chunk{0};
  for (const std::int64_t length : lists.lengths) {
    call.n += length;
    first_chunk.push_back(first_chunk.back() + chunk_count(length));
  }
  const std::int64_t chunks = first_chunk.back();
  with_driver<Op>(call, [&](const auto& driver) {
    Op op{};
    if (!driver.begin(op)) return;
    std::vector<double> partials(static_cast<std::size_t>(chunks * Op::kSums + 1));
    pool(chunks, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t c = Op::kReversed ? chunks - 1 - i : i;
        const auto after = std::upper_bound(first_chunk.begin(), first_chunk.end(), c);  // skips empty tensors
        const auto t = static_cast<std::size_t>(after - first_chunk.begin() - 1);
        Vectors<T, Op::kVectors> vectors{};
        for (int k = 0; k < Op::kVectors; ++k) vectors.flat[k] = static_cast<T*>(lists.operand[k][t]);
        const std::int64_t begin = (c - first_chunk[t]) * kChunk;
        std::int64_t hint = -1;
        cpu::run_chunk<Op, T, T>(op, vectors, begin, std::min(lists.lengths[t], begin + kChunk), hint,
                                 partials.data() + c * Op::kSums);
      }
    });
    double sums[Op::kSums + 1] = {};
    for (std::int64_t c = 0; c < chunks; ++c) {
      for (int m = 0; m < Op::kSums; ++m) sums[m] += partials[static_cast<std::size_t>(c * Op::kSums + m)];
    }
    driver.finish(sums);
  });
}

// The buffers of one custom call. What is asked for by index is there: ops.cc makes the calls.
struct Buffers {
  Args args;
  Rets rets;

  ffi::AnyBuffer argument(std::size_t i) const { return *args.get<ffi::AnyBuffer>(i); }
  ffi::AnyBuffer result(std::size_t i) const { return **rets.get<ffi::AnyBuffer>(i); }
  template <class T>
  T scalar(std::size_t i) const {
    return *static_cast<const T*>(argument(i).untyped_data());
  }
  std::vector<void*> arguments(std::size_t first, std::size_t count) const {
    std::vector<void*> out;
    for (std::size_t i = first; i < first + count; ++i) out.push_back(argument(i).untyped_data());
    return out;
  }
  std::vector<void*> results(std::size_t first, std::size_t count) const {
    std::vector<void*> out;
    for (std::size_t i = first; i < first + count; ++i) out.push_back(result(i).untyped_data());
    return out;
  }
  // Lists of the lengths of the first `count` arguments.
  Lists lists(std::size_t count) const {
    Lists lists;
    for (std::size_t i = 0; i < count; ++i) {
      lists.lengths.push_back(static_cast<std::int64_t>(argument(i).element_count()));
    }
    return lists;
  }
  // Results [to, to + count) begin as arguments [from, from + count); where XLA has put them in place, they do already.
  void take_over(std::size_t from, std::size_t to, std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i) {
      const ffi::AnyBuffer in = argument(from + i);
      void* out = result(to + i).untyped_data();
      if (out != in.untyped_data() && in.size_bytes() > 0) std::memcpy(out, in.untyped_data(), in.size_bytes());
    }
  }
};

template <class T>
struct Begin {  // b, tau, cg_tol, max_iter -> x, r, p, state
  static void compute(const Buffers& buffers, const Pool& pool) {
    const std::size_t count = buffers.args.size() - 3;
    Call call{};
    call.state = static_cast<CgState*>(buffers.result(3 * count).untyped_data());
    *call.state = CgState{};
    call.params[0] = buffers.scalar<double>(count);
    call.params[1] = buffers.scalar<double>(count + 1);
    call.params[2] = buffers.scalar<std::int32_t>(count + 2);
    Lists lists = buffers.lists(count);
    lists.operand[0] = buffers.arguments(0, count);
    run<Magnitude<T>>(lists, call, pool);
    for (std::size_t k = 0; k < 3; ++k) lists.operand[1 + k] = buffers.results(k * count, count);
    run<CgBegin<T>>(lists, call, pool);
  }
};

template <class T>
struct Iterate {  // hp, x, r, p, state -> x, r, p, state
  static void compute(const Buffers& buffers, const Pool& pool) {
    const std::size_t count = (buffers.args.size() - 1) / 4;
    buffers.take_over(count, 0, 3 * count + 1);
    Call call{};
    call.state = static_cast<CgState*>(buffers.result(3 * count).untyped_data());
    Lists lists = buffers.lists(count);
    lists.operand[0] = buffers.arguments(0, count);
    lists.operand[1] = buffers.results(2 * count, count);
    run<DampedCurvature<T>>(lists, call, pool);
    for (std::size_t k = 0; k < 3; ++k) lists.operand[1 + k] = buffers.results(k * count, count);
    run<CgUpdateDeferred<T>>(lists, call, pool);
  }
};

template <class T>
struct Finish {  // x, r, p, state -> x, state
  static void compute(const Buffers& buffers, const Pool& pool) {
    const std::size_t count = (buffers.args.size() - 1) / 3;
    buffers.take_over(0, 0, count);
    buffers.take_over(3 * count, count, 1);
    Call call{};
    call.state = static_cast<CgState*>(buffers.result(count).untyped_data());
    Lists lists = buffers.lists(count);
    lists.operand[0] = buffers.arguments(count, count);
    lists.operand[1] = buffers.arguments(2 * count, count);
    lists.operand[2] = buffers.results(0, count);
    run<CgFinish<T>>(lists, call, pool);
  }
};

template <class T>
struct SumOfMagnitudes {  // a -> sum
  static void compute(const Buffers& buffers, const Pool& pool) {
    Call call{};
    call.out = static_cast<double*>(buffers.result(0).untyped_data());
    Lists lists = buffers.lists(buffers.args.size());
    lists.operand[0] = buffers.arguments(0, buffers.args.size());
    run<Magnitude<T>>(lists, call, pool);
  }
};

template <class T>
struct InnerProducts {  // a, b, scale_a, scale_b -> sums
  static void compute(const Buffers& buffers, const Pool& pool) {
    const std::size_t count = (buffers.args.size() - 2) / 2;
    Call call{};
    call.params[0] = buffers.scalar<double>(2 * count);
    call.params[1] = buffers.scalar<double>(2 * count + 1);
    call.out = static_cast<double*>(buffers.result(0).untyped_data());
    Lists lists = buffers.lists(count);
    for (std::size_t k = 0; k < 2; ++k) lists.operand[k] = buffers.arguments(k * count, count);
    run<Dots<T>>(lists, call, pool);
  }
};

// F<T> for the type of the first argument.
template <template <class> class F>
ffi::Error call(Args args, Rets rets, ffi::ThreadPool threads) {
  const Buffers buffers{args, rets};
  const Pool pool(&threads);
  if (buffers.argument(0).element_type() == ffi::DataType::F64) {
    F<double>::compute(buffers, pool);
  } else {
    F<float>::compute(buffers, pool);
  }
  return ffi::Error::Success();
}

#define NCG_XLA_HANDLER(name, F)                                                                                  \
  XLA_FFI_DEFINE_HANDLER(name, call<F>, ffi::Ffi::Bind().RemainingArgs().RemainingRets().Ctx<ffi::ThreadPool>()); \
  XLA_FFI_REGISTER_HANDLER(ffi::GetXlaFfiApi(), #name, "Host", name)

NCG_XLA_HANDLER(ncg_list_cg_begin, Begin);
NCG_XLA_HANDLER(ncg_list_cg_iterate, Iterate);
NCG_XLA_HANDLER(ncg_list_cg_finish, Finish);
NCG_XLA_HANDLER(ncg_list_magnitude, SumOfMagnitudes);
NCG_XLA_HANDLER(ncg_list_dots, InnerProducts);

}  // namespace
}  // namespace ncg::xla_cpu
