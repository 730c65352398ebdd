#include <cuda_runtime.h>

#include "ncg/cuda/graph/loop.h"
#include "ncg/cuda/platform.cuh"

#if CUDART_VERSION >= 12040

namespace {

// In the graph before the loop, and at the end of its body: one thread, one flag.
__global__ void repeat_unless_stopped(cudaGraphConditionalHandle handle, const ncg::CgState* state) {
  cudaGraphSetConditional(handle, state->stop == 0.0 ? 1u : 0u);
}

struct Capture {
  cudaGraph_t graph = nullptr;
  const cudaGraphNode_t* dependencies = nullptr;
  std::size_t count = 0;
};

// What a stream has captured so far; cudaErrorIllegalState where it is not capturing. CUDA 13 added the edges' data to
// these calls; plain edges have none.
cudaError_t capture_of(cudaStream_t stream, Capture& capture) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
#if CUDART_VERSION >= 13000
  const cudaGraphEdgeData* edges = nullptr;
  const cudaError_t error =
      cudaStreamGetCaptureInfo(stream, &status, nullptr, &capture.graph, &capture.dependencies, &edges, &capture.count);
#else
  const cudaError_t error =
      cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, &capture.graph, &capture.dependencies, &capture.count);
#endif
  if (error != cudaSuccess) return error;
  return status == cudaStreamCaptureStatusActive ? cudaSuccess : cudaErrorIllegalState;
}

cudaError_t add_loop(cudaStream_t stream, cudaGraphNodeParams& loop) {
  Capture capture;
  cudaError_t error = capture_of(stream, capture);
  if (error != cudaSuccess) return error;
  cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
  error = cudaGraphAddNode(&node, capture.graph, capture.dependencies, nullptr, capture.count, &loop);
  if (error != cudaSuccess) return error;
  return cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1, cudaStreamSetCaptureDependencies);
#else
  error = cudaGraphAddNode(&node, capture.graph, capture.dependencies, capture.count, &loop);
  if (error != cudaSuccess) return error;
  return cudaStreamUpdateCaptureDependencies(stream, &node, 1, cudaStreamSetCaptureDependencies);
#endif
}

cudaError_t open_loop(cudaStream_t stream, cudaStream_t body, const ncg::CgState* state, std::uint64_t* handle) {
  Capture capture;
  cudaError_t error = capture_of(stream, capture);
  if (error != cudaSuccess) return error;
  cudaGraphConditionalHandle condition = 0;
  error = cudaGraphConditionalHandleCreate(&condition, capture.graph, 0, cudaGraphCondAssignDefault);
  if (error != cudaSuccess) return error;
  error = NCG_LAUNCH(repeat_unless_stopped, 1, 1, stream, condition, state);  // there may be nothing to do
  if (error != cudaSuccess) return error;
  cudaGraphNodeParams loop = {};
  loop.type = cudaGraphNodeTypeConditional;
  loop.conditional.handle = condition;
  loop.conditional.type = cudaGraphCondTypeWhile;
  loop.conditional.size = 1;
  error = add_loop(stream, loop);
  if (error != cudaSuccess) return error;
  *handle = condition;
  return cudaStreamBeginCaptureToGraph(body, loop.conditional.phGraph_out[0], nullptr, nullptr, 0,
                                       cudaStreamCaptureModeRelaxed);
}

}  // namespace

extern "C" {
const char* ncg_cuda_loop_open(void* stream, void* body, ncg::CgState* state, std::uint64_t* handle) {
  const cudaError_t error =
      open_loop(static_cast<cudaStream_t>(stream), static_cast<cudaStream_t>(body), state, handle);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* ncg_cuda_loop_close(void* body, ncg::CgState* state, std::uint64_t handle) {
  const auto stream = static_cast<cudaStream_t>(body);
  const cudaError_t launched =
      NCG_LAUNCH(repeat_unless_stopped, 1, 1, stream, static_cast<cudaGraphConditionalHandle>(handle), state);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);  // in any case: the stream must not stay capturing
  const cudaError_t error = launched != cudaSuccess ? launched : ended;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
}

#else

extern "C" {
const char* ncg_cuda_loop_open(void*, void*, ncg::CgState*, std::uint64_t*) {
  return "loops on the device need a build with CUDA 12.4 or later";
}
const char* ncg_cuda_loop_close(void*, ncg::CgState*, std::uint64_t) {
  return "loops on the device need a build with CUDA 12.4 or later";
}
}

#endif
