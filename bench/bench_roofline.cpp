// What `of_limit` of the other benchmarks is a fraction of.

#include <iomanip>
#include <iostream>

#include "support/roofline.hpp"

int main() {
  std::cout << std::fixed << std::setprecision(1) << "FMA peak, float: " << bench::fma_peak() / 1e9
            << " GF/s\nexp, float: " << bench::exp_rate() / 1e9 << " G/s\nread bandwidth:\n";
  for (seqmix::Index kilobytes = 16; kilobytes <= 256 * 1024; kilobytes *= 4) {
    std::cout << std::setw(10) << kilobytes
              << " KiB: " << bench::read_bandwidth(kilobytes * 1024) / 1e9 << " GB/s\n";
  }
  return 0;
}
