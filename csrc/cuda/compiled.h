// Which CUDA this module was compiled by.
#pragma once

#include <string>

namespace edgepop::cuda {

// The compiler and its targets, as in "CUDA 13.0 for sm_80 sm_90".
std::string compiled();

}  // namespace edgepop::cuda
