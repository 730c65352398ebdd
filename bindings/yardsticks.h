#pragma once

#include <pybind11/pybind11.h>

// Adds the yardsticks of benchmarks to the module: stream, copy and what they can do.
void bind_yardsticks(pybind11::module_& module);
