#include <seqmix/seqmix.hpp>

double sum_in_other_file();
void refuse_in_other_file();
#ifdef HAS_LAYERS
bool has_layers();
#else
static bool has_layers() { return true; }
#endif
#ifdef READS_FILES
bool reads_files();
#else
static bool reads_files() { return true; }
#endif

/// What a library throws that was built with other flags is caught as what it is.
static bool catches() {
  try {
    refuse_in_other_file();
  } catch (const seqmix::ShapeError&) {
    return true;
  }
  return false;
}

int main() {
  seqmix::Tensor<float, 2> numbers({3, 5});
  double sum = 0;
  for (seqmix::Index row = 0; row < numbers.extent(0); ++row) {
    for (seqmix::Index column = 0; column < numbers.extent(1); ++column) {
      numbers(row, column) = static_cast<float>(row * column);
      sum += numbers(row, column);
    }
  }
  const bool sums = sum == 30 && sum_in_other_file() == 30;
  return sums && catches() && reads_files() && has_layers() ? 0 : 1;
}
