// Flat vectors: from tensors and back, their sums, and a multiple of one of two.
#pragma once

#include "tensorflow/kernel.h"

namespace ncg::tf {

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
    call.params[1] = 1.0;
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
struct MagnitudeOp : Kernel<MagnitudeOp<Device, T>> {
  using Kernel<MagnitudeOp>::Kernel;

  absl::Status compute(OpKernelContext* ctx) {
    Device<T> device(ctx);
    TF_RETURN_IF_ERROR(device.status());
    Call call{};
    call.operand[0] = data(ctx->input(0));
    call.n = ctx->input(0).NumElements();
    Tensor room, ticket;
    TF_RETURN_IF_ERROR(give_sums(ctx, device, &call, 1, &room, &ticket));
    return device.magnitude(call);
  }
};

template <template <class> class Device, class T>
struct DotsOp : Kernel<DotsOp<Device, T>> {
  using Kernel<DotsOp>::Kernel;

  absl::Status compute(OpKernelContext* ctx) {
    TF_RETURN_IF_ERROR(check_lengths("NcgDots", ctx));
    Device<T> device(ctx);
    TF_RETURN_IF_ERROR(device.status());
    Call call{};
    call.operand[0] = data(ctx->input(0));
    call.operand[1] = data(ctx->input(1));
    call.n = ctx->input(0).NumElements();
    call.params[0] = ctx->input(2).scalar<double>()();
    call.params[1] = ctx->input(3).scalar<double>()();
    Tensor room, ticket;
    TF_RETURN_IF_ERROR(give_sums(ctx, device, &call, 3, &room, &ticket));
    return device.dots(call);
  }
};

template <template <class> class Device, class T>
struct ScaledOp : Kernel<ScaledOp<Device, T>> {
  using Kernel<ScaledOp>::Kernel;

  absl::Status compute(OpKernelContext* ctx) {
    TF_RETURN_IF_ERROR(check_lengths("NcgScaled", ctx));
    Device<T> device(ctx);
    TF_RETURN_IF_ERROR(device.status());
    const Tensor& chosen = ctx->input(ctx->input(2).scalar<bool>()() ? 0 : 1);
    Tensor* out = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(0, chosen.shape(), &out));
    Call call{};
    call.operand[0] = data(chosen);
    call.operand[1] = data(*out);
    call.n = chosen.NumElements();
    call.params[0] = ctx->input(3).scalar<double>()();
    call.params[1] = ctx->input(4).scalar<double>()();
    if (call.params[1] == 0.0) return device.zero(data(*out), out->TotalBytes());
    Tensor room;
    TF_RETURN_IF_ERROR(give_room<Device<T>>(ctx, &call, &room));
    return device.pack(call);
  }
};

}  // namespace ncg::tf
