// The registration of all kernels of the TensorFlow ops, for a device (kernels_cpu.cc, kernels_gpu.cc).
#pragma once

#include "tensorflow/solve_kernels.h"
#include "tensorflow/vector_kernels.h"

namespace ncg::tf {

// Scalars stay in host memory, whatever the device. The kernels of the highest priority are taken.
#define NCG_REGISTER_AS(Kernels, device, priority, T)                                                            \
  REGISTER_KERNEL_BUILDER(Name("NcgPack").Device(device).Priority(priority).TypeConstraint<T>("T"),              \
                          PackOp<Kernels, T>);                                                                   \
  REGISTER_KERNEL_BUILDER(Name("NcgViews").Device(device).Priority(priority).TypeConstraint<T>("T"), ViewsOp);   \
  REGISTER_KERNEL_BUILDER(Name("NcgCgBegin")                                                                     \
                              .Device(device)                                                                    \
                              .Priority(priority)                                                                \
                              .TypeConstraint<T>("T")                                                            \
                              .HostMemory("tau")                                                                 \
                              .HostMemory("cg_tol")                                                              \
                              .HostMemory("max_iter"),                                                           \
                          CgBeginOp<Kernels, T>);                                                                \
  REGISTER_KERNEL_BUILDER(Name("NcgCgIterate").Device(device).Priority(priority).TypeConstraint<T>("T"),         \
                          CgIterateOp<Kernels, T>);                                                              \
  REGISTER_KERNEL_BUILDER(Name("NcgMagnitude").Device(device).Priority(priority).TypeConstraint<T>("T"),         \
                          MagnitudeOp<Kernels, T>);                                                              \
  REGISTER_KERNEL_BUILDER(                                                                                       \
      Name("NcgDots").Device(device).Priority(priority).TypeConstraint<T>("T").HostMemory("scale_a").HostMemory( \
          "scale_b"),                                                                                            \
      DotsOp<Kernels, T>);                                                                                       \
  REGISTER_KERNEL_BUILDER(Name("NcgScaled")                                                                      \
                              .Device(device)                                                                    \
                              .Priority(priority)                                                                \
                              .TypeConstraint<T>("T")                                                            \
                              .HostMemory("first")                                                               \
                              .HostMemory("scale")                                                               \
                              .HostMemory("factor"),                                                             \
                          ScaledOp<Kernels, T>);                                                                 \
  REGISTER_KERNEL_BUILDER(Name("NcgCgFinish").Device(device).Priority(priority).TypeConstraint<T>("T"),          \
                          CgFinishOp<Kernels, T>);
#define NCG_REGISTER(Kernels, device, priority)     \
  NCG_REGISTER_AS(Kernels, device, priority, float) \
  NCG_REGISTER_AS(Kernels, device, priority, double)

}  // namespace ncg::tf
