#include <seqmix/seqmix.hpp>

double sum_in_other_file();
#ifdef READS_FILES
bool reads_files();
#else
static bool reads_files() { return true; }
#endif

int main() {
  seqmix::Tensor<float, 2> numbers({3, 5});
  double sum = 0;
  for (seqmix::Index row = 0; row < numbers.extent(0); ++row) {
    for (seqmix::Index column = 0; column < numbers.extent(1); ++column) {
      numbers(row, column) = static_cast<float>(row * column);
      sum += numbers(row, column);
    }
  }
  return sum == 30 && sum_in_other_file() == 30 && reads_files() ? 0 : 1;
}
