// Tensors of Python, borrowed for a call through DLPack's C exchange API (DLPack 1.3, since torch 2.11): the type of a
// producer holds functions in C. So nothing of torch is compiled in, and where a tensor's methods, called from Python,
// take microseconds between kernels that have emptied the caches, this takes less than one.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <unordered_map>

namespace edgepop {

// A producer's tensor; sizes and strides are its own memory. Absent (None in Python): no data, no dimensions.
struct Array {
  enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4 };

  void* data = nullptr;
  int32_t device_type = 0, device_id = 0;
  int32_t dims = 0;
  uint8_t code = 0, bits = 0;
  uint16_t lanes = 0;
  const int64_t* size = nullptr;
  const int64_t* stride = nullptr;  // elements
  uint64_t byte_offset = 0;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(static_cast<char*>(data) + byte_offset);
  }
};

struct ExchangeApi {
  uint32_t major, minor;
  const ExchangeApi* previous;  // of an earlier major version
  void *allocate, *own, *make;
  int (*borrow)(void* object, Array* tensor);  // not 0: a Python error is set
  void* stream;
};

// Raises AttributeError for a type without the API.
inline const ExchangeApi& exchange_api(PyTypeObject* type) {
  static std::unordered_map<PyTypeObject*, const ExchangeApi*> known;  // guarded by the GIL
  const auto found = known.find(type);
  if (found != known.end()) return *found->second;
  const pybind11::object capsule = pybind11::handle(reinterpret_cast<PyObject*>(type)).attr("__dlpack_c_exchange_api__");
  const auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) throw pybind11::error_already_set();
  while (api != nullptr && api->major != 1) api = api->previous;
  if (api == nullptr || api->borrow == nullptr) throw std::runtime_error("tensors cannot be borrowed through DLPack 1");
  Py_INCREF(reinterpret_cast<PyObject*>(type));  // what `known` holds stays this type
  known.emplace(type, api);
  return *api;
}

}  // namespace edgepop

template <>
struct pybind11::detail::type_caster<edgepop::Array> {
  PYBIND11_TYPE_CASTER(edgepop::Array, const_name("Tensor | None"));

  bool load(handle source, bool) {
    value = {};
    if (source.is_none()) return true;
    if (edgepop::exchange_api(Py_TYPE(source.ptr())).borrow(source.ptr(), &value) != 0) throw error_already_set();
    return true;
  }
};
