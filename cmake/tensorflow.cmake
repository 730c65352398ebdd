# The TensorFlow op: a library of its own, because its C++ ABI belongs to one TensorFlow minor version, which its file
# name carries. It is built against the TensorFlow that the building Python imports, so the package must be installed
# with --no-build-isolation for it; without one, the pure-TensorFlow path serves.
if(NCG_TENSORFLOW STREQUAL "OFF")
  return()
elseif(NOT NCG_TENSORFLOW MATCHES "^(AUTO|ON)$")
  message(FATAL_ERROR "ncg_cuda: NCG_TENSORFLOW=${NCG_TENSORFLOW} is none of AUTO, ON, OFF.")
endif()
execute_process(
  COMMAND ${CMAKE_COMMAND} -E env TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= ${Python_EXECUTABLE} -c
    "import tensorflow as tf; f = [x for x in tf.sysconfig.get_compile_flags() if x.startswith('-D')]; \
print(tf.__version__, tf.sysconfig.get_include(), tf.sysconfig.get_lib(), ','.join(f), sep=';')"
  OUTPUT_VARIABLE NCG_TF OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE NCG_TF_ERROR RESULT_VARIABLE NCG_TF_FAILED)
if(NCG_TF_FAILED)
  string(REGEX MATCH "[^\n]*\n?$" NCG_TF_ERROR "${NCG_TF_ERROR}")
  if(NCG_TENSORFLOW STREQUAL "ON")
    message(FATAL_ERROR "ncg_cuda: NCG_TENSORFLOW=ON, but TensorFlow cannot be imported by ${Python_EXECUTABLE}: "
      "${NCG_TF_ERROR}\nInstall it there first and build with --no-build-isolation.")
  endif()
  message(STATUS "ncg_cuda: no TensorFlow in this Python, its op is not built: ${NCG_TF_ERROR}")
  return()
endif()
list(GET NCG_TF 0 NCG_TF_VERSION)
list(GET NCG_TF 1 NCG_TF_INCLUDE)
list(GET NCG_TF 2 NCG_TF_LIB)
list(GET NCG_TF 3 NCG_TF_DEFINES)
string(REPLACE "," ";" NCG_TF_DEFINES "${NCG_TF_DEFINES}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" NCG_TF_MINOR "${NCG_TF_VERSION}")
message(STATUS "ncg_cuda: op for TensorFlow ${NCG_TF_MINOR}")

add_library(ncg_tf MODULE csrc/tensorflow/ops.cc csrc/tensorflow/kernels_cpu.cc)
set_target_properties(ncg_tf PROPERTIES PREFIX "lib" OUTPUT_NAME "ncg_tf-${NCG_TF_MINOR}" CXX_VISIBILITY_PRESET hidden)
target_link_libraries(ncg_tf PRIVATE ncg_options ${NCG_TF_LIB}/libtensorflow_framework.so.2)
# TensorFlow's headers are system headers: their warnings are not ours
target_include_directories(ncg_tf SYSTEM PRIVATE ${NCG_TF_INCLUDE})
target_compile_options(ncg_tf PRIVATE ${NCG_TF_DEFINES})
# found through the process, which has loaded TensorFlow before: no path of the build machine in the library
set_target_properties(ncg_tf PROPERTIES SKIP_BUILD_RPATH TRUE INSTALL_RPATH "")
if(NCG_CUDA_FOUND)
  target_sources(ncg_tf PRIVATE csrc/tensorflow/kernels_gpu.cc)
  target_link_libraries(ncg_tf PRIVATE ncg_cuda_engine)
  set_target_properties(ncg_tf PROPERTIES CUDA_RUNTIME_LIBRARY Static)
endif()
install(TARGETS ncg_tf LIBRARY DESTINATION ncg_cuda)

# Its passes for functions that XLA compiles for the CPU: one more library, because XLA's headers promise nothing from
# one TensorFlow to the next. Where they do not compile, or are not all in the package, the plain path serves under XLA.
set(NCG_TF_XLA_SOURCES csrc/tensorflow/xla/handlers.cc csrc/tensorflow/xla/ops.cc)
set(NCG_TF_XLA_INCLUDE ${NCG_TF_INCLUDE} ${NCG_TF_INCLUDE}/external/highwayhash
  ${NCG_TF_INCLUDE}/external/farmhash_archive/src)
set(NCG_TF_XLA_LIBRARIES ${NCG_TF_LIB}/libtensorflow_cc.so.2 ${NCG_TF_LIB}/libtensorflow_framework.so.2)
set(NCG_TF_XLA_KEY ${NCG_TF_VERSION} ${CMAKE_CXX_COMPILER} ${CMAKE_CXX_COMPILER_VERSION})
foreach(source ${NCG_TF_XLA_SOURCES})
  file(SHA256 ${CMAKE_SOURCE_DIR}/${source} hash)
  list(APPEND NCG_TF_XLA_KEY ${hash})
endforeach()
if(NOT "${NCG_TF_XLA_KEY}" STREQUAL "${NCG_TF_XLA_TRIED}")  # compiled on trial once for each TensorFlow and source
  message(STATUS "ncg_cuda: trying XLA's headers of TensorFlow ${NCG_TF_VERSION}")
  unset(NCG_TF_XLA_COMPILES CACHE)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  list(TRANSFORM NCG_TF_XLA_SOURCES PREPEND ${CMAKE_SOURCE_DIR}/ OUTPUT_VARIABLE sources)
  try_compile(NCG_TF_XLA_COMPILES ${CMAKE_BINARY_DIR}/try_xla SOURCES ${sources}
    CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${CMAKE_SOURCE_DIR}/csrc;${NCG_TF_XLA_INCLUDE}"
    COMPILE_DEFINITIONS ${NCG_TF_DEFINES} CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON OUTPUT_VARIABLE NCG_TF_XLA_ERROR)
  unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
  file(WRITE ${CMAKE_BINARY_DIR}/try_xla.log "${NCG_TF_XLA_ERROR}")
  set(NCG_TF_XLA_TRIED "${NCG_TF_XLA_KEY}" CACHE INTERNAL "what NCG_TF_XLA_COMPILES is about")
endif()
if(NOT NCG_TF_XLA_COMPILES OR NOT EXISTS ${NCG_TF_LIB}/libtensorflow_cc.so.2)
  message(STATUS "ncg_cuda: no kernels for XLA with TensorFlow ${NCG_TF_VERSION}: see ${CMAKE_BINARY_DIR}/try_xla.log")
  return()
endif()
add_library(ncg_tf_xla MODULE ${NCG_TF_XLA_SOURCES})
set_target_properties(ncg_tf_xla PROPERTIES PREFIX "lib" OUTPUT_NAME "ncg_tf_xla-${NCG_TF_MINOR}"
  CXX_VISIBILITY_PRESET hidden SKIP_BUILD_RPATH TRUE INSTALL_RPATH "")
target_link_libraries(ncg_tf_xla PRIVATE ncg_options ${NCG_TF_XLA_LIBRARIES})
target_include_directories(ncg_tf_xla SYSTEM PRIVATE ${NCG_TF_XLA_INCLUDE})
# GCC takes the inlined small vectors of XLA's headers for uninitialised ones
target_compile_options(ncg_tf_xla PRIVATE ${NCG_TF_DEFINES} -Wno-maybe-uninitialized)
install(TARGETS ncg_tf_xla LIBRARY DESTINATION ncg_cuda)
