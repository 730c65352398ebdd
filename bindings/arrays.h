// What Python needs to know of an array, read without the detours of its Python attributes.
#pragma once

#include <pybind11/pybind11.h>

void bind_arrays(pybind11::module_& module);
