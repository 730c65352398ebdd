// CPU kernels of the TensorFlow ops: the CPU engine on TensorFlow's own thread pool.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "ncg/call.h"
#include "ncg/cpu/engine.h"
#include "ncg/operations.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/threadpool.h"

namespace ncg::tf {
namespace {

using tensorflow::AllocatorAttributes;
using tensorflow::DataTypeToEnum;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::PartialTensorShape;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// The executor of the op: TensorFlow's intra-op threads.
struct Pool {
  OpKernelContext* context;
  static constexpr std::int64_t kMinChunks = 4;        // a smaller share is not worth waking a thread
  static constexpr std::int64_t kSharesPerThread = 4;  // evens out threads that are busy elsewhere

  template <class F>
  void operator()(std::int64_t count, const F& f) const {
    using tsl::thread::ThreadPool;
    ThreadPool* workers = context->device()->tensorflow_cpu_worker_threads()->workers;
    const std::int64_t shares = kSharesPerThread * workers->NumThreads();
    const std::int64_t block = std::max((count + shares - 1) / shares, kMinChunks);
    if (count <= block) {
      f(std::int64_t{0}, count);
      return;
    }
    workers->ParallelFor(
        count, ThreadPool::SchedulingParams(ThreadPool::SchedulingStrategy::kFixedBlockSize, absl::nullopt, block),
        [&f](std::int64_t first, std::int64_t last) { f(first, last); });
  }
};

std::int64_t padded(std::int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

template <class T>
T* flat_data(Tensor* tensor) {
  return tensor->flat<T>().data();
}
template <class T>
T* flat_data(const Tensor& tensor) {  // operands that are only read go through the same pointer type
  return const_cast<T*>(tensor.flat<T>().data());
}

template <class Op, class Driver, class T>
absl::Status run_pass(OpKernelContext* ctx, const Vectors<T, Op::kVectors>& vectors, std::int64_t n,
                      const Driver& driver) {
  Tensor partials;
  TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_DOUBLE, TensorShape({partials_size(n)}), &partials));
  cpu::run<Op, T>(vectors, n, driver, flat_data<double>(&partials), Pool{ctx});
  return absl::OkStatus();
}

template <class T>
class PackOp : public OpKernel {
 public:
  explicit PackOp(OpKernelConstruction* ctx) : OpKernel(ctx) { OP_REQUIRES_OK(ctx, ctx->GetAttr("negate", &negate_)); }

  void Compute(OpKernelContext* ctx) override {
    OpInputList tensors;
    OP_REQUIRES_OK(ctx, ctx->input_list("tensors", &tensors));
    std::vector<std::int64_t> offsets;
    std::int64_t size = 0;
    for (const Tensor& tensor : tensors) {
      offsets.push_back(size);
      size += padded(tensor.NumElements());
    }
    Tensor* flat = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({size}), &flat));
    T* out = flat_data<T>(flat);
    for (int i = 0; i < tensors.size(); ++i) {
      const std::int64_t n = tensors[i].NumElements();
      const T* in = flat_data<T>(tensors[i]);
      T* to = out + offsets[i];
      if (negate_) {
        for (std::int64_t j = 0; j < n; ++j) to[j] = -in[j];
      } else if (n > 0) {
        std::memcpy(to, in, static_cast<std::size_t>(n) * sizeof(T));
      }
      for (std::int64_t j = n; j < padded(n); ++j) to[j] = T(0);
    }
  }

 private:
  bool negate_;
};

template <class T>
class ViewsOp : public OpKernel {
 public:
  explicit ViewsOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    std::vector<PartialTensorShape> shapes;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("shapes", &shapes));
    shapes_.resize(shapes.size());
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      OP_REQUIRES(ctx, shapes[i].AsTensorShape(&shapes_[i]),
                  absl::InvalidArgumentError("NcgViews: every shape must be fully defined"));
      size_ += padded(shapes_[i].num_elements());
    }
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& flat = ctx->input(0);
    OP_REQUIRES(ctx, flat.dims() == 1 && flat.NumElements() == size_,
                absl::InvalidArgumentError(absl::StrCat("NcgViews: flat has shape ", flat.shape().DebugString(),
                                                        "; its shapes need [", size_, "]")));
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      const std::int64_t n = shapes_[i].num_elements();
      if (n == 0) {
        Tensor* empty = nullptr;
        OP_REQUIRES_OK(ctx, ctx->allocate_output(static_cast<int>(i), shapes_[i], &empty));
        continue;
      }
      // Shares flat's buffer. Segments start on multiples of 64 bytes, without which a Slice aborts the process.
      Tensor view;
      OP_REQUIRES(ctx, view.CopyFrom(flat.Slice(offset, offset + n), shapes_[i]),
                  absl::InternalError("NcgViews: a segment does not have the size of its shape"));
      ctx->set_output(static_cast<int>(i), view);
      offset += padded(n);
    }
  }

 private:
  std::vector<TensorShape> shapes_;
  std::int64_t size_ = 0;
};

template <class T>
class CgBeginOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* ctx) override {
    const Tensor& b = ctx->input(0);
    const std::int64_t n = b.NumElements();
    Tensor* vector[3];
    for (int i = 0; i < 3; ++i) OP_REQUIRES_OK(ctx, ctx->allocate_output(i, b.shape(), &vector[i]));
    Tensor* state_tensor = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(3, TensorShape({kStateSize}), &state_tensor));
    const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
    if (n > 0) {
      std::memset(flat_data<T>(vector[0]), 0, bytes);
      std::memcpy(flat_data<T>(vector[1]), flat_data<T>(b), bytes);
      std::memcpy(flat_data<T>(vector[2]), flat_data<T>(b), bytes);
    }
    auto* state = reinterpret_cast<CgState*>(flat_data<double>(state_tensor));
    *state = CgState{};
    state->tau = ctx->input(1).scalar<double>()();
    state->cg_tol = ctx->input(2).scalar<double>()();
    state->max_iter = ctx->input(3).scalar<std::int32_t>()();
    state->eps = std::numeric_limits<T>::epsilon();
    state->largest = std::numeric_limits<T>::max();
    using Op = Dots<T>;
    Vectors<T, 2> vectors{};
    vectors.flat[0] = vectors.flat[1] = flat_data<T>(b);
    OP_REQUIRES_OK(ctx, (run_pass<Op>(ctx, vectors, n, InSolve<Op>{state, {}})));
  }
};

template <class T>
class CgIterateOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* ctx) override {
    OpInputList hp;
    OP_REQUIRES_OK(ctx, ctx->input_list("hp", &hp));
    const int first = hp.size();  // index of the input x
    const std::int64_t n = ctx->input(first).NumElements();
    std::vector<Segment> segments;
    segments.reserve(static_cast<std::size_t>(hp.size()));
    std::int64_t offset = 0;
    for (const Tensor& tensor : hp) {
      const std::int64_t length = tensor.NumElements();
      if (length > 0) segments.push_back({flat_data<T>(tensor), offset, length});
      offset += padded(length);
    }
    constexpr const char* kNames[] = {"x", "r", "p"};
    for (int i = 0; i < 3; ++i) {
      OP_REQUIRES(ctx, ctx->input(first + i).NumElements() == offset,
                  absl::InvalidArgumentError(absl::StrCat("NcgCgIterate: ", kNames[i], " has ",
                                                          ctx->input(first + i).NumElements(),
                                                          " elements, but the products need ", offset)));
    }
    OP_REQUIRES(ctx, ctx->input(first + 3).NumElements() == kStateSize,
                absl::InvalidArgumentError("NcgCgIterate: the state block has another length"));

    Tensor* vector[3];
    for (int i = 0; i < 3; ++i) {
      // in place wherever the executor lets go of the input; that holds inside a while loop from its second round on
      const Tensor& in = ctx->input(first + i);
      OP_REQUIRES_OK(ctx, ctx->forward_input_or_allocate_output({first + i}, i, in.shape(), &vector[i]));
      if (flat_data<T>(vector[i]) != flat_data<T>(in)) {
        std::memcpy(flat_data<T>(vector[i]), flat_data<T>(in), static_cast<std::size_t>(n) * sizeof(T));
      }
    }
    Tensor* state_tensor = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(3, TensorShape({kStateSize}), &state_tensor));
    auto* state = reinterpret_cast<CgState*>(flat_data<double>(state_tensor));
    std::memcpy(state, flat_data<double>(ctx->input(first + 3)), sizeof(CgState));

    const Table table{segments.data(), static_cast<std::int64_t>(segments.size())};
    Vectors<T, 2> curvature{};
    curvature.table = table;
    curvature.flat[1] = flat_data<T>(vector[2]);
    OP_REQUIRES_OK(ctx, (run_pass<DampedCurvature<T>>(ctx, curvature, n, InSolve<DampedCurvature<T>>{state, {}})));
    Vectors<T, 4> update{};
    update.table = table;
    for (int i = 0; i < 3; ++i) update.flat[1 + i] = flat_data<T>(vector[i]);
    OP_REQUIRES_OK(ctx, (run_pass<CgUpdate<T>>(ctx, update, n, InSolve<CgUpdate<T>>{state, {}})));
  }
};

#define NCG_REGISTER(T)                                                                                            \
  REGISTER_KERNEL_BUILDER(Name("NcgPack").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), PackOp<T>);       \
  REGISTER_KERNEL_BUILDER(Name("NcgViews").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), ViewsOp<T>);     \
  REGISTER_KERNEL_BUILDER(Name("NcgCgBegin").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), CgBeginOp<T>); \
  REGISTER_KERNEL_BUILDER(Name("NcgCgIterate").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), CgIterateOp<T>);
NCG_REGISTER(float)
NCG_REGISTER(double)
#undef NCG_REGISTER

}  // namespace
}  // namespace ncg::tf
