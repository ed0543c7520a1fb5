// The parts of the module, each of which defines its functions.
#pragma once

#include <pybind11/pybind11.h>

namespace edgepop::python {

void define_scores(pybind11::module_& m);
void define_products(pybind11::module_& m);
void define_mixtures(pybind11::module_& m);
void define_cuda(pybind11::module_& m);  // where it was compiled with EDGEPOP_CUDA

}  // namespace edgepop::python
