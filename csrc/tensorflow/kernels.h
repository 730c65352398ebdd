// The kernels of the TensorFlow ops, written once over the device that runs them (kernels_cpu.cc, kernels_gpu.cc).
//
// A Device<T> is made from the context of one call of an op and has
//
//   status()                        whether it can run at all; asked first
//   table_room(count)               float64 numbers of workspace, beyond the partials, for a table of so many tensors
//   copy(to, from, bytes)           between buffers of the device
//   write(to, host, bytes)          from host memory, which may go at once
//   damped_curvature(call), ...     one per operation of ncg/operations.h
//
// each of which takes effect after those before it.
#pragma once

#include <cstdint>
#include <vector>

#include "ncg/call.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace ncg::tf {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// What the ops pass along as "state": the state block and behind it the ticket of the GPU's passes, which is thus zero
// from the beginning of the solve on, without another launch.
struct Block {
  CgState state;
  double ticket;
};
constexpr std::int64_t kBlockSize = kStateSize + 1;
static_assert(sizeof(Block) == kBlockSize * sizeof(double), "the state tensor is one Block");

inline std::int64_t padded(std::int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Operands that are only read go through the same pointer type as those that are written.
inline void* data(const Tensor& tensor) { return tensor.data(); }

// The tensors of a list, each on a multiple of kLanes elements of one flat vector of `size` elements.
struct PackedList {
  std::vector<Segment> segments;
  std::int64_t size = 0;

  explicit PackedList(const OpInputList& tensors) {
    segments.reserve(static_cast<std::size_t>(tensors.size()));
    for (const Tensor& tensor : tensors) {
      const std::int64_t length = tensor.NumElements();
      if (length > 0) segments.push_back({data(tensor), size, length});
      size += padded(length);
    }
  }
  Table table() const { return {segments.data(), static_cast<std::int64_t>(segments.size())}; }
};

// An op whose call is compute(context), which returns a status.
template <class Op>
struct Kernel : OpKernel {
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* ctx) override { OP_REQUIRES_OK(ctx, static_cast<Op*>(this)->compute(ctx)); }
};

// Room for any operation on n elements with this table. `room` must live until the call has been made: TensorFlow gives
// its memory to nobody but work that is queued later on the same stream.
template <class Device>
absl::Status give_room(OpKernelContext* ctx, Call* call, Tensor* room) {
  const std::int64_t size = partials_size(call->n) + Device::table_room(call->table.count);
  TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_DOUBLE, TensorShape({size}), room));
  call->partials = static_cast<double*>(data(*room));
  return absl::OkStatus();
}

inline void set_block(Call* call, const Tensor& block) {
  auto* at = static_cast<Block*>(data(block));
  call->state = &at->state;
  call->ticket = &at->ticket;
}

// Output i takes over the memory of input k wherever the executor lets go of it (inside a while loop that holds from
// the second round on), or gets a copy.
template <class Device>
absl::Status take_over(OpKernelContext* ctx, Device& device, int k, int i, Tensor** out) {
  const Tensor& in = ctx->input(k);
  TF_RETURN_IF_ERROR(ctx->forward_input_or_allocate_output({k}, i, in.shape(), out));
  if (data(**out) == data(in)) return absl::OkStatus();
  return device.copy(data(**out), data(in), in.TotalBytes());
}

template <template <class> class Device, class T>
struct PackOp : Kernel<PackOp<Device, T>> {
  explicit PackOp(OpKernelConstruction* ctx) : Kernel<PackOp>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("negate", &negate));
  }

  absl::Status compute(OpKernelContext* ctx) {
    OpInputList tensors;
    TF_RETURN_IF_ERROR(ctx->input_list("tensors", &tensors));
    const PackedList list(tensors);
    Tensor* flat = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, TensorShape({list.size}), &flat));
    if (list.size == 0) return absl::OkStatus();
    Device<T> device(ctx);
    TF_RETURN_IF_ERROR(device.status());
    Call call{};
    call.operand[1] = data(*flat);
    call.table = list.table();
    call.n = list.size;
    call.params[0] = negate ? -1.0 : 1.0;
    Tensor room;
    TF_RETURN_IF_ERROR(give_room<Device<T>>(ctx, &call, &room));
    return device.pack(call);
  }

  bool negate = false;
};

// Moves nothing: the same on every device.
struct ViewsOp : Kernel<ViewsOp> {
  explicit ViewsOp(OpKernelConstruction* ctx) : Kernel(ctx) {
    std::vector<tensorflow::PartialTensorShape> partial;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("shapes", &partial));
    shapes.resize(partial.size());
    for (std::size_t i = 0; i < partial.size(); ++i) {
      OP_REQUIRES(ctx, partial[i].AsTensorShape(&shapes[i]),
                  absl::InvalidArgumentError("NcgViews: every shape must be fully defined"));
      size += padded(shapes[i].num_elements());
    }
  }

  absl::Status compute(OpKernelContext* ctx) {
    const Tensor& flat = ctx->input(0);
    if (flat.dims() != 1 || flat.NumElements() != size) {
      return absl::InvalidArgumentError(
          absl::StrCat("NcgViews: flat has shape ", flat.shape().DebugString(), "; its shapes need [", size, "]"));
    }
    std::int64_t offset = 0;
    for (int i = 0; i < static_cast<int>(shapes.size()); ++i) {
      const TensorShape& shape = shapes[static_cast<std::size_t>(i)];
      const std::int64_t n = shape.num_elements();
      if (n == 0) {
        Tensor* empty = nullptr;
        TF_RETURN_IF_ERROR(ctx->allocate_output(i, shape, &empty));
        continue;
      }
      // Shares flat's buffer. Segments start on multiples of 64 bytes, without which a Slice aborts the process.
      Tensor view;
      if (!view.CopyFrom(flat.Slice(offset, offset + n), shape)) {
        return absl::InternalError("NcgViews: a segment does not have the size of its shape");
      }
      ctx->set_output(i, view);
      offset += padded(n);
    }
    return absl::OkStatus();
  }

  std::vector<TensorShape> shapes;
  std::int64_t size = 0;
};

template <template <class> class Device, class T>
struct CgBeginOp : Kernel<CgBeginOp<Device, T>> {
  using Kernel<CgBeginOp>::Kernel;

  absl::Status compute(OpKernelContext* ctx) {
    Device<T> device(ctx);
    TF_RETURN_IF_ERROR(device.status());
    const Tensor& b = ctx->input(0);
    Tensor* x = nullptr;
    Tensor* r = nullptr;
    Tensor* p = nullptr;
    Tensor* block = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, b.shape(), &x));
    TF_RETURN_IF_ERROR(ctx->allocate_output(1, b.shape(), &r));
    TF_RETURN_IF_ERROR(ctx->allocate_output(2, b.shape(), &p));
    TF_RETURN_IF_ERROR(ctx->allocate_output(3, TensorShape({kBlockSize}), &block));

    const Block zero{};
    TF_RETURN_IF_ERROR(device.write(data(*block), &zero, sizeof(zero)));
    Call call{};
    call.operand[0] = data(b);
    call.n = b.NumElements();
    call.params[0] = ctx->input(1).scalar<double>()();
    call.params[1] = ctx->input(2).scalar<double>()();
    call.params[2] = ctx->input(3).scalar<std::int32_t>()();
    set_block(&call, *block);
    Tensor room;
    TF_RETURN_IF_ERROR(give_room<Device<T>>(ctx, &call, &room));
    TF_RETURN_IF_ERROR(device.magnitude(call));
    call.operand[1] = data(*x);
    call.operand[2] = data(*r);
    call.operand[3] = data(*p);
    return device.cg_begin(call);
  }
};

template <template <class> class Device, class T>
struct CgIterateOp : Kernel<CgIterateOp<Device, T>> {
  using Kernel<CgIterateOp>::Kernel;

  absl::Status compute(OpKernelContext* ctx) {
    OpInputList hp;
    TF_RETURN_IF_ERROR(ctx->input_list("hp", &hp));
    const int first = hp.size();  // index of the input x
    const PackedList list(hp);
    constexpr const char* kNames[] = {"x", "r", "p"};
    for (int i = 0; i < 3; ++i) {
      if (ctx->input(first + i).NumElements() != list.size) {
        return absl::InvalidArgumentError(absl::StrCat("NcgCgIterate: ", kNames[i], " has ",
                                                       ctx->input(first + i).NumElements(),
                                                       " elements, but the products need ", list.size));
      }
    }
    if (ctx->input(first + 3).NumElements() != kBlockSize) {
      return absl::InvalidArgumentError("NcgCgIterate: the state block has another length");
    }

    Device<T> device(ctx);
    TF_RETURN_IF_ERROR(device.status());
    Tensor* out[4];  // x, r, p and the state
    for (int i = 0; i < 4; ++i) TF_RETURN_IF_ERROR(take_over(ctx, device, first + i, i, &out[i]));
    Call call{};
    call.operand[1] = data(*out[2]);
    call.table = list.table();
    call.n = list.size;
    set_block(&call, *out[3]);
    Tensor room;
    TF_RETURN_IF_ERROR(give_room<Device<T>>(ctx, &call, &room));
    TF_RETURN_IF_ERROR(device.damped_curvature(call));
    for (int i = 0; i < 3; ++i) call.operand[1 + i] = data(*out[i]);
    return device.cg_update_deferred(call);
  }
};

template <template <class> class Device, class T>
struct CgFinishOp : Kernel<CgFinishOp<Device, T>> {
  using Kernel<CgFinishOp>::Kernel;

  absl::Status compute(OpKernelContext* ctx) {
    const std::int64_t n = ctx->input(0).NumElements();
    if (ctx->input(1).NumElements() != n || ctx->input(2).NumElements() != n) {
      return absl::InvalidArgumentError("NcgCgFinish: x, r and p have different lengths");
    }
    if (ctx->input(3).NumElements() != kBlockSize) {
      return absl::InvalidArgumentError("NcgCgFinish: the state block has another length");
    }
    Device<T> device(ctx);
    TF_RETURN_IF_ERROR(device.status());
    Tensor* x = nullptr;
    Tensor* block = nullptr;
    TF_RETURN_IF_ERROR(take_over(ctx, device, 0, 0, &x));
    TF_RETURN_IF_ERROR(take_over(ctx, device, 3, 1, &block));
    Call call{};
    call.operand[0] = data(ctx->input(1));
    call.operand[1] = data(ctx->input(2));
    call.operand[2] = data(*x);
    call.n = n;
    set_block(&call, *block);
    Tensor room;
    TF_RETURN_IF_ERROR(give_room<Device<T>>(ctx, &call, &room));
    return device.cg_finish(call);
  }
};

// Scalars stay in host memory, whatever the device. The kernels of the highest priority are taken.
#define NCG_REGISTER_AS(Kernels, device, priority, T)                                                          \
  REGISTER_KERNEL_BUILDER(Name("NcgPack").Device(device).Priority(priority).TypeConstraint<T>("T"),            \
                          PackOp<Kernels, T>);                                                                 \
  REGISTER_KERNEL_BUILDER(Name("NcgViews").Device(device).Priority(priority).TypeConstraint<T>("T"), ViewsOp); \
  REGISTER_KERNEL_BUILDER(Name("NcgCgBegin")                                                                   \
                              .Device(device)                                                                  \
                              .Priority(priority)                                                              \
                              .TypeConstraint<T>("T")                                                          \
                              .HostMemory("tau")                                                               \
                              .HostMemory("cg_tol")                                                            \
                              .HostMemory("max_iter"),                                                         \
                          CgBeginOp<Kernels, T>);                                                              \
  REGISTER_KERNEL_BUILDER(Name("NcgCgIterate").Device(device).Priority(priority).TypeConstraint<T>("T"),       \
                          CgIterateOp<Kernels, T>);                                                            \
  REGISTER_KERNEL_BUILDER(Name("NcgCgFinish").Device(device).Priority(priority).TypeConstraint<T>("T"),        \
                          CgFinishOp<Kernels, T>);
#define NCG_REGISTER(Kernels, device, priority)     \
  NCG_REGISTER_AS(Kernels, device, priority, float) \
  NCG_REGISTER_AS(Kernels, device, priority, double)

}  // namespace ncg::tf
