// What lets one definition of an operation compile for the host (g++, clang++) and for the device (nvcc).
#pragma once

#if defined(__CUDACC__)
#define NCG_HD __host__ __device__ __forceinline__
#else
#define NCG_HD inline __attribute__((always_inline))
#endif

// One binary that runs well on every x86-64: the loader picks the widest clone. "arch=x86-64-v3" and not "avx2",
// because a bare avx2 clone emits no FMA. Elsewhere (aarch64, clang without the attribute) the plain build is used.
#if defined(NCG_TARGET_CLONES) && !defined(__CUDACC__)
#define NCG_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NCG_CLONES
#endif
