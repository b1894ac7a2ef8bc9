#include <seqmix/seqmix.hpp>

double sum_in_other_file() {
  seqmix::Tensor<float, 2> numbers({3, 5});
  double sum = 0;
  for (seqmix::Index row = 0; row < numbers.extent(0); ++row) {
    for (seqmix::Index column = 0; column < numbers.extent(1); ++column) {
      numbers(row, column) = static_cast<float>(row * column);
      sum += numbers(row, column);
    }
  }
  return sum;
}

void refuse_in_other_file() { seqmix::Tensor<float, 2>({-1, 2}); }
