// The executor of a custom call: XLA's own intra-op threads.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "ncg/cpu/hands.h"
#include "xla/ffi/api/ffi.h"

namespace ncg::xla_cpu {

// Calls run on those threads, too, so a call never waits for a thread that has not begun: it could be its own. Where
// XLA has no thread pool, it says that there are 0 threads.
class Pool {
 public:
  explicit Pool(::xla::ffi::ThreadPool* threads) : threads_(threads) {}
  static constexpr std::int64_t kMinChunksPerThread = 16;  // a smaller share is not worth waking a thread

  template <class F>
  void operator()(std::int64_t count, const F& f) const {
    const std::int64_t team = std::min<std::int64_t>(threads_->num_threads(), count / kMinChunksPerThread);
    if (team < 2) {
      f(std::int64_t{0}, count);
      return;
    }
    const auto work = std::make_shared<Work<F>>(count, team, f);
    for (std::int64_t i = 1; i < team; ++i) threads_->Schedule([work] { work->join(); });
    work->join();
    work->close();
  }

 private:
  template <class F>
  struct Work {
    Work(std::int64_t count, std::int64_t team, const F& f) : f_(f), hands_(count, team) {}

    void join() {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (closed_) return;  // too late: the call is over, and with it f
        ++busy_;
      }
      hands_.take(f_);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) idle_.notify_all();
    }
    void close() {
      std::unique_lock<std::mutex> lock(mutex_);
      closed_ = true;
      idle_.wait(lock, [this] { return busy_ == 0; });
    }

   private:
    const F& f_;
    cpu::Hands hands_;
    std::mutex mutex_;
    std::condition_variable idle_;
    bool closed_ = false;
    int busy_ = 0;
  };

  ::xla::ffi::ThreadPool* threads_;
};

}  // namespace ncg::xla_cpu
