#include "cpu/dispatch/scratch.h"

#include <new>

namespace edgepop::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Arena {
  char* data = nullptr;
  size_t size = 0;

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { ::operator delete(data, kAlignment); }

  void grow(size_t bytes) {
    ::operator delete(data, kAlignment);
    data = nullptr;
    size = 0;
    data = static_cast<char*>(::operator new(bytes, kAlignment));
    size = bytes;
  }
};

thread_local Arena arena;

}  // namespace

char* scratch(size_t bytes) {
  if (bytes > arena.size) arena.grow(bytes);
  return arena.data;
}

}  // namespace edgepop::cpu
