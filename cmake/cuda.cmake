# Finds nvcc and sets the architectures: NCG_CUDA_FOUND, CMAKE_CUDA_ARCHITECTURES (settable).
set(NCG_CUDA_FOUND FALSE)
if(NCG_CUDA STREQUAL "OFF")
  message(STATUS "ncg_cuda: CUDA engine off (NCG_CUDA=OFF)")
  return()
elseif(NOT NCG_CUDA MATCHES "^(AUTO|ON)$")
  message(FATAL_ERROR "ncg_cuda: NCG_CUDA=${NCG_CUDA} is none of AUTO, ON, OFF.")
endif()

# nvcc may come from a CUDA toolkit or from Python wheels (nvidia-cuda-nvcc and its kin), which lack what CMake expects;
# .ci/nvcc-from-wheels.sh says how to use those.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(NCG_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "ncg_cuda: NCG_CUDA=ON, but no working nvcc was found. Put nvcc on the PATH, or set CUDACXX=/path/to/nvcc, or "
      "build without the CUDA engine: NCG_CUDA=OFF (or AUTO, the default).")
  endif()
  message(STATUS "ncg_cuda: no nvcc found, CPU engine only (NCG_CUDA=AUTO)")
  return()
endif()

# Real architectures, and PTX of the newest for GPUs to come. Must be set before the language is enabled.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES $ENV{CUDAARCHS})
elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE NCG_NVCC_VERSION)
  string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" NCG_NVCC_RELEASE "${NCG_NVCC_VERSION}")
  set(NCG_NVCC_RELEASE "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
  if(NCG_NVCC_RELEASE VERSION_GREATER_EQUAL 13.0)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
  elseif(NCG_NVCC_RELEASE VERSION_GREATER_EQUAL 12.8)
    set(CMAKE_CUDA_ARCHITECTURES 60-real 70-real 80-real 90-real 100-real 120)
  else()  # 12.0 to 12.7 know nothing beyond Hopper
    set(CMAKE_CUDA_ARCHITECTURES 60-real 70-real 80-real 90)
  endif()
endif()
enable_language(CUDA)
set(NCG_CUDA_FOUND TRUE)
message(STATUS "ncg_cuda: CUDA engine with ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")
