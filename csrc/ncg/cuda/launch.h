// The C interface of the CUDA engine: what the bindings and the TensorFlow op call. No CUDA header is needed to use it.
#pragma once

#include "ncg/call.h"
#include "ncg/operations.h"

extern "C" {
// One per operation. Queues the call on call->stream of the current device. Returns null, or what went wrong.
#define NCG_DECLARE_LAUNCH(name, Functor) const char* ncg_cuda_##name(ncg::Dtype dtype, const ncg::Call* call);
NCG_OPERATIONS(NCG_DECLARE_LAUNCH)
#undef NCG_DECLARE_LAUNCH
// The tensors of call->table from the flat operand 1: tensors = params[0] flat.
const char* ncg_cuda_unpack(ncg::Dtype dtype, const ncg::Call* call);

// The number of usable GPUs; where it is 0, *why says why (a static string).
int ncg_cuda_device_count(const char** why);
// "13.0": the CUDA version that this library was compiled with.
const char* ncg_cuda_version();
// Device memory that a call with `count` segments needs beyond its partials, in bytes (0 if the table fits in the
// launch).
std::int64_t ncg_cuda_table_bytes(std::int64_t count);
}
