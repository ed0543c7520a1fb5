// What Python hands over, as every part of the module reads it: addresses, numbers, nothing of torch.
// Arguments are checked in Python, once, before an address is taken. The last line before the kernels is here: a tensor
// that has elements and no address (a DTensor and other wrappers keep theirs elsewhere) is refused, not read.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/update.h"

namespace edgepop::python {

namespace py = pybind11;

using Strides = std::array<int64_t, 4>;

inline void check(const char* name, uintptr_t address, int64_t count) {
  if (address == 0 && count > 0) {
    throw py::type_error(std::string(name) + ": expected a tensor with memory of its own, got one without: a wrapper "
                         "such as DTensor keeps its values elsewhere");
  }
}

// Float32 scores of four dimensions, where they lie.
struct Scores {
  const float* data;
  int64_t size[4], stride[4];

  Scores(uintptr_t address, const Strides& sizes, const Strides& strides)
      : data(reinterpret_cast<const float*>(address)) {
    std::copy(sizes.begin(), sizes.end(), size);
    std::copy(strides.begin(), strides.end(), stride);
    check("scores", address, count());
  }

  int64_t count() const { return size[0] * size[1] * size[2] * size[3]; }
};

// The update of an optimizer: "sgd" or "adam", and the fields of its struct in common/update.h in their order.
using UpdateArg = std::pair<std::string, std::vector<float>>;
using MomentsArg = std::array<uintptr_t, 3>;  // addresses, 0 where there is none

inline Update update(const UpdateArg& arg) {
  const auto& [name, a] = arg;
  const size_t fields = name == "sgd" ? 7 : name == "adam" ? 10 : 0;
  if (fields == 0) throw py::value_error("update: expected sgd or adam, got " + name);
  if (a.size() != fields) {
    throw py::value_error("update: expected " + std::to_string(fields) + " numbers for " + name + ", got " +
                          std::to_string(a.size()));
  }
  Update u;
  if (name == "sgd") {
    u.sgd = {a[0], a[1], a[2], a[3], a[4], a[5] != 0, a[6] != 0};
  } else {
    u.kind = Update::Kind::adam;
    u.adam = {a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]};
  }
  return u;
}

}  // namespace edgepop::python
