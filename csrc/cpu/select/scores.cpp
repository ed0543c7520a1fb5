#include "cpu/select/scores.h"

#include <algorithm>

namespace edgepop::cpu {
namespace {

// Number of scores that `dims` dimensions fill without a gap or an overlap in some order, 0 where they do not.
int64_t filled(int dims, const int64_t* size, const int64_t* stride) {
  int64_t count = 1;
  for (int found = 0; found < dims; ++found) {
    const int64_t* next = std::find(stride, stride + dims, count);
    if (next == stride + dims) return 0;
    count *= size[next - stride];
  }
  return count;
}

}  // namespace

Scores::Scores(const float* data, const int64_t (&size)[4], const int64_t (&stride)[4]) : data_(data) {
  for (int d = 0; d < 4; ++d) {
    count_ *= size[d];
    if (size[d] == 1) continue;
    if (dims_ > 0 && stride_[dims_ - 1] == size[d] * stride[d]) {
      size_[dims_ - 1] *= size[d];
      stride_[dims_ - 1] = stride[d];
    } else {
      size_[dims_] = size[d];
      stride_[dims_++] = stride[d];
    }
  }
  if (dims_ == 0) {
    size_[0] = stride_[0] = 1;
    dims_ = 1;
  }
  dense_ = filled(dims_, size_, stride_) == count_;
  // Beyond 64K scores a slice is too coarse a unit of work.
  const int64_t inner = filled(dims_ - 1, size_ + 1, stride_ + 1);
  if (inner == stride_[0] && inner <= 65536) slice_ = inner;
}

int64_t Scores::position(int64_t offset) const {
  int64_t position = 0;
  for (int d = 0; d < dims_; ++d) position = position * size_[d] + offset / stride_[d] % size_[d];
  return position;
}

void Scores::gather(int64_t begin, int64_t n, float* out) const {
  int64_t at[4];
  const float* row = data_;
  for (int d = dims_ - 1; d >= 0; --d) {
    at[d] = begin % size_[d];
    begin /= size_[d];
    row += at[d] * stride_[d];
  }
  const int last = dims_ - 1;
  const int64_t step = stride_[last];
  while (n > 0) {
    const int64_t run = std::min(n, size_[last] - at[last]);
    for (int64_t i = 0; i < run; ++i) out[i] = row[i * step];
    out += run;
    n -= run;
    if (n == 0) return;
    row -= at[last] * step;
    at[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      row += stride_[d];
      if (++at[d] < size_[d]) break;
      row -= size_[d] * stride_[d];
      at[d] = 0;
    }
  }
}

}  // namespace edgepop::cpu
