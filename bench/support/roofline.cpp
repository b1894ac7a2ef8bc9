#include "support/roofline.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <map>
#include <vector>

#include "seqmix/core/tensor.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace bench {
namespace {

using seqmix::Index;
using seqmix::Tensor;
using Batch = seqmix::simd::Batch<float>;
constexpr Index lanes = seqmix::simd::lanes<float>;

/// Keeps a value that nobody reads from being optimised away.
template <class T>
void keep(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

/// The median of `work` units a second over several runs of `run`, each of at least a few ms.
double rate(double work, auto&& run) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_of = [&](Index times) {
    const auto start = Clock::now();
    for (Index i = 0; i < times; ++i) run();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  Index times = 1;
  while (seconds_of(times) < 5e-3) times *= 2;
  std::vector<double> seconds;
  for (int i = 0; i < 15; ++i) seconds.push_back(seconds_of(times));
  std::nth_element(seconds.begin(), seconds.begin() + 7, seconds.end());
  return work * static_cast<double>(times) / seconds[7];
}

}  // namespace

double fma_peak() {
  static const double peak = [] {
    constexpr Index chains = 12, repeats = 1000;
    return rate(static_cast<double>(2 * chains * repeats * lanes), [] {
      const Batch a(0.999F), b(0.001F);
      Batch c0(0.F), c1(1.F), c2(2.F), c3(3.F), c4(4.F), c5(5.F), c6(6.F), c7(7.F), c8(8.F),
          c9(9.F), c10(10.F), c11(11.F);
      for (Index i = 0; i < repeats; ++i) {
        c0 = seqmix::simd::fma(c0, a, b), c1 = seqmix::simd::fma(c1, a, b);
        c2 = seqmix::simd::fma(c2, a, b), c3 = seqmix::simd::fma(c3, a, b);
        c4 = seqmix::simd::fma(c4, a, b), c5 = seqmix::simd::fma(c5, a, b);
        c6 = seqmix::simd::fma(c6, a, b), c7 = seqmix::simd::fma(c7, a, b);
        c8 = seqmix::simd::fma(c8, a, b), c9 = seqmix::simd::fma(c9, a, b);
        c10 = seqmix::simd::fma(c10, a, b), c11 = seqmix::simd::fma(c11, a, b);
      }
      keep(c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11);
    });
  }();
  return peak;
}

double exp_rate() {
  static const double per_second = [] {
    constexpr Index count = 2048;
    Tensor<float, 1> x({count}), y({count});
    for (Index i = 0; i < count; ++i) x[i] = static_cast<float>(i % 80) - 40;
    return rate(static_cast<double>(count), [&] {
      seqmix::simd::map<float>(
          count, y.data(), [](Batch v) { return seqmix::simd::exp(v); }, x.data());
      keep(y);
    });
  }();
  return per_second;
}

double read_bandwidth(Index bytes) {
  static std::map<Index, double> measured;  // by size, a power of two
  const auto size = static_cast<Index>(
      std::bit_ceil(static_cast<std::size_t>(std::clamp<Index>(bytes, 1 << 14, Index{1} << 28))));
  const auto found = measured.find(size);
  if (found != measured.end()) return found->second;
  // The work set is the asked size, not the power of two that it is remembered under.
  const Index count = std::max<Index>(std::min(bytes, size) / 4 / (8 * lanes), 1) * 8 * lanes;
  Tensor<float, 1> numbers({count});
  const double bandwidth = rate(static_cast<double>(4 * count), [&] {
    std::array<Batch, 8> sums;
    sums.fill(Batch(0.F));
    for (Index i = 0; i < count; i += 8 * lanes) {
      const float* p = numbers.data() + i;
      sums[0] += seqmix::simd::load<float>(p), sums[1] += seqmix::simd::load<float>(p + lanes);
      sums[2] += seqmix::simd::load<float>(p + 2 * lanes);
      sums[3] += seqmix::simd::load<float>(p + 3 * lanes);
      sums[4] += seqmix::simd::load<float>(p + 4 * lanes);
      sums[5] += seqmix::simd::load<float>(p + 5 * lanes);
      sums[6] += seqmix::simd::load<float>(p + 6 * lanes);
      sums[7] += seqmix::simd::load<float>(p + 7 * lanes);
    }
    keep(sums);
  });
  return measured[size] = bandwidth;
}

}  // namespace bench
