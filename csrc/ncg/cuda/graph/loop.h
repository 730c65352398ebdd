// A loop that runs on the device alone: a conditional WHILE node (CUDA 12.4 and later) in the graph that is being
// captured, which repeats its body until the solve's state block says stop.
#pragma once

#include <cstdint>

#include "ncg/state.h"

extern "C" {
// `stream` is capturing. Adds the loop behind what it captured so far and starts the capture of the loop's body on
// `body` (another stream, not capturing). Writes the loop's handle for the call that closes it. Returns null, or what
// went wrong; then nothing is capturing on `body`.
const char* ncg_cuda_loop_open(void* stream, void* body, ncg::CgState* state, std::uint64_t* handle);
// Ends the body: it is repeated while state->stop is 0.
const char* ncg_cuda_loop_close(void* body, ncg::CgState* state, std::uint64_t handle);
}
