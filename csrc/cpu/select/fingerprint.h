// A number that tells most writes of a tensor from none, without reading it all.
#pragma once

#include <cstdint>

namespace edgepop::cpu {

// Of up to 32 elements of a tensor of four dimensions, evenly spread, the first and the last among them: equal for equal
// elements. Whatever rescales, averages, broadcasts or draws anew changes it; a write of single elements may pass unseen.
uint64_t fingerprint(const uint32_t* elements, const int64_t size[4], const int64_t stride[4]);

}  // namespace edgepop::cpu
