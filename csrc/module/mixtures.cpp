#include "cpu/mix/mix.h"
#include "module/arguments.h"
#include "module/parts.h"

namespace edgepop::python {
namespace {

// address, rows, bytes from one row to the next
using CodesArg = std::tuple<uintptr_t, int64_t, int64_t>;

cpu::CodeRows codes_of(const CodesArg& arg, int64_t count) {
  const auto& [address, rows, pitch] = arg;
  if (count < 0 || rows < 1 || pitch < count) {
    throw py::value_error("codes: expected a row or more, each with a byte for every weight");
  }
  check("codes", address, count);
  return {reinterpret_cast<const uint8_t*>(address), rows, pitch};
}

void superpose(uintptr_t weight, const CodesArg& arg, uintptr_t tables, int64_t count, uintptr_t mixed, int threads) {
  const cpu::CodeRows codes = codes_of(arg, count);
  check("weight", weight, count);
  check("tables", tables, 1);
  check("mixed", mixed, count);
  py::gil_scoped_release release;
  cpu::superpose(reinterpret_cast<const float*>(weight), codes, reinterpret_cast<const float*>(tables), count,
                 reinterpret_cast<float*>(mixed), threads);
}

void shares(uintptr_t a, uintptr_t b, const CodesArg& arg, int64_t count, uintptr_t sums, int threads) {
  const cpu::CodeRows codes = codes_of(arg, count);
  check("a", a, count);
  check("b", b, count);
  check("shares", sums, 1);
  py::gil_scoped_release release;
  cpu::shares(reinterpret_cast<const float*>(a), reinterpret_cast<const float*>(b), codes, count,
              reinterpret_cast<double*>(sums), threads);
}

}  // namespace

void define_mixtures(py::module_& m) {
  m.def("superpose", &superpose);
  m.def("shares", &shares);
}

}  // namespace edgepop::python
