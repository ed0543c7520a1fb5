// Working memory of the kernels: one block per calling thread, grown when a call needs more, kept for the next one.
// Kept because the pages of a fresh block are zeroed by the kernel on first touch: about 150 faults for 600 KB, as
// long as a small layer takes.
#pragma once

#include <cstddef>

namespace edgepop::cpu {

// At least `bytes` bytes, 64-byte aligned, contents undefined; the calling thread's until its next call of scratch().
// Throws std::bad_alloc.
char* scratch(size_t bytes);

}  // namespace edgepop::cpu
