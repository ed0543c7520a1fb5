// A weight under several masks at once, W * sum(alpha_t * M_t), and the sums over each mask that are the gradient to the
// alphas. Masks come as codes: of each weight a byte for 8 tasks, bit t % 8 of it in row t / 8.
#pragma once

#include <cstdint>

namespace edgepop::cpu {

constexpr int64_t kCodes = 256;  // that a byte can be
constexpr int64_t kTasksPerRow = 8;

struct CodeRows {
  const uint8_t* first;
  int64_t rows, pitch;  // bytes from one row to the next
};

// mixed[i] = weight[i] * sum over rows of tables[row][code of i in the row].
void superpose(const float* weight, const CodeRows& codes, const float* tables, int64_t count, float* mixed, int threads);

// shares[t] = sum over i with bit t of a[i] * b[i], for kTasksPerRow * rows tasks, in double.
void shares(const float* a, const float* b, const CodeRows& codes, int64_t count, double* shares, int threads);

}  // namespace edgepop::cpu
