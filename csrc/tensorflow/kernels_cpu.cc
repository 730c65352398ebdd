// CPU kernels of the TensorFlow ops: the CPU engine on TensorFlow's own thread pool.
#include <algorithm>
#include <cstring>

#include "ncg/cpu/engine.h"
#include "ncg/cpu/hands.h"
#include "ncg/operations.h"
#include "tensorflow/core/platform/threadpool.h"
#include "tensorflow/kernels.h"

namespace ncg::tf {
namespace {

// The executor of the op: TensorFlow's intra-op threads.
struct Pool {
  OpKernelContext* context;
  static constexpr std::int64_t kMinChunksPerThread = 16;  // a smaller share is not worth waking a thread

  template <class F>
  void operator()(std::int64_t count, const F& f) const {
    using tsl::thread::ThreadPool;
    ThreadPool* workers = context->device()->tensorflow_cpu_worker_threads()->workers;
    const std::int64_t team = std::min<std::int64_t>(workers->NumThreads(), count / kMinChunksPerThread);
    if (team < 2) {
      f(std::int64_t{0}, count);
      return;
    }
    cpu::Hands hands(count, team);
    workers->ParallelFor(
        team, ThreadPool::SchedulingParams(ThreadPool::SchedulingStrategy::kFixedBlockSize, absl::nullopt, 1),
        [&](std::int64_t, std::int64_t) { hands.take(f); });
  }
};

template <class T>
class Cpu {
 public:
  explicit Cpu(OpKernelContext* ctx) : pool_{ctx} {}

  absl::Status status() const { return absl::OkStatus(); }
  static std::int64_t table_room(std::int64_t) { return 0; }
  absl::Status copy(void* to, const void* from, std::size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status zero(void* to, std::size_t bytes) {
    if (bytes > 0) std::memset(to, 0, bytes);
    return absl::OkStatus();
  }
  absl::Status write(void* to, const void* host, std::size_t bytes) { return copy(to, host, bytes); }

#define NCG_METHOD(name, Functor)                                                                  \
  absl::Status name(const Call& call) {                                                            \
    with_driver<Functor<T>>(call, [&](const auto& driver) {                                        \
      cpu::run<Functor<T>, T>(vectors_of<Functor<T>>(call), call.n, driver, call.partials, pool_); \
    });                                                                                            \
    return absl::OkStatus();                                                                       \
  }
  NCG_OPERATIONS(NCG_METHOD)
#undef NCG_METHOD

 private:
  Pool pool_;
};

NCG_REGISTER(Cpu, tensorflow::DEVICE_CPU, 0)

}  // namespace
}  // namespace ncg::tf
