// The pybind11 module edgepop_kernels._native: addresses and numbers in, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/threads.h"
#include "module/parts.h"

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels of edgepop_kernels. Private: use edgepop_kernels.masked_linear and its siblings.";
#if defined(__clang__)
  m.attr("compiler") = __VERSION__;
#else
  m.attr("compiler") = "GCC " __VERSION__;
#endif
  m.attr("threads") = edgepop::cpu::kThreads;
  m.def("isa", [] { return edgepop::cpu::kernels().name; });
  m.def("isas", &edgepop::cpu::usable, "The instruction sets that this machine can run, the widest first.");
  m.def("use_isa", &edgepop::cpu::use, "Has later calls use the named instruction set; returns the one before.");
  m.def("isa_passed_over", &edgepop::cpu::passed_over);
  edgepop::python::define_scores(m);
  edgepop::python::define_products(m);
  edgepop::python::define_mixtures(m);
#if defined(EDGEPOP_CUDA)
  edgepop::python::define_cuda(m);
#endif
}
