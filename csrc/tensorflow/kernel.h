// What the kernels of the TensorFlow ops have in common. Each is written once over the device that runs it.
//
// A Device<T> is made from the context of one call of an op and has
//
//   status()                        whether it can run at all; asked first
//   table_room(count)               float64 numbers of workspace, beyond the partials, for a table of so many tensors
//   copy(to, from, bytes)           between buffers of the device
//   zero(to, bytes)                 a buffer of the device
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

// Inputs 0 and 1 are vectors of one length.
inline absl::Status check_lengths(const char* op, OpKernelContext* ctx) {
  const std::int64_t a = ctx->input(0).NumElements(), b = ctx->input(1).NumElements();
  if (a == b) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": a has ", a, " elements, but b has ", b));
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

// Room for the operation, and for its sums as output 0: a call on its own.
template <class Device>
absl::Status give_sums(OpKernelContext* ctx, Device& device, Call* call, int sums, Tensor* room, Tensor* ticket) {
  Tensor* out = nullptr;
  TF_RETURN_IF_ERROR(ctx->allocate_output(0, sums == 1 ? TensorShape({}) : TensorShape({sums}), &out));
  TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_DOUBLE, TensorShape({1}), ticket));
  TF_RETURN_IF_ERROR(device.zero(data(*ticket), sizeof(double)));
  call->out = static_cast<double*>(data(*out));
  call->ticket = data(*ticket);
  return give_room<Device>(ctx, call, room);
}

}  // namespace ncg::tf
