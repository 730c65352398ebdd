// The passes of a CG solve.
#pragma once

#include "tensorflow/kernel.h"

namespace ncg::tf {

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

}  // namespace ncg::tf
