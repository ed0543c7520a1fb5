#include "cuda/compiled.h"

namespace edgepop::cuda {

std::string compiled() {
  std::string text = "CUDA " + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + " for";
  for (const int arch : {__CUDA_ARCH_LIST__}) text += " sm_" + std::to_string(arch / 10);
  return text;
}

}  // namespace edgepop::cuda
