#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <complex>
#include <limits>
#include <numbers>
#include <vector>

#include "seqmix/kernels/transform/fft.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"

using namespace seqmix;
using support::random_tensor;
using support::same_bits;

namespace {

using Complex = std::complex<long double>;

/// exp(-2πi j / n) for j < n.
std::vector<Complex> roots_of_unity(Index n) {
  std::vector<Complex> roots;
  for (Index j = 0; j < n; ++j) {
    roots.push_back(
        std::polar(1.0L, -2 * std::numbers::pi_v<long double> * static_cast<long double>(j) /
                             static_cast<long double>(n)));
  }
  return roots;
}

/// Σ_j x_j exp(-2πi jk / n), as it is written.
std::vector<Complex> literal_transform(const std::vector<Complex>& x) {
  const std::vector<Complex> roots = roots_of_unity(static_cast<Index>(x.size()));
  std::vector<Complex> result(x.size());
  for (std::size_t k = 0; k < x.size(); ++k) {
    for (std::size_t j = 0; j < x.size(); ++j) result[k] += x[j] * roots[j * k % x.size()];
  }
  return result;
}

template <class S>
std::vector<Complex> points_of_lane(const Tensor<S, 2>& z, Index lane) {
  std::vector<Complex> result;
  for (Index j = 0; j < z.extent(0); ++j) {
    result.emplace_back(z(j, lane), z(j, simd::lanes<S> + lane));
  }
  return result;
}

double relative_error(const std::vector<Complex>& got, const std::vector<Complex>& expected) {
  long double error = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += std::norm(got[i] - expected[i]), norm += std::norm(expected[i]);
  }
  return norm > 0 ? static_cast<double>(std::sqrt(error / norm)) : support::failed;
}

/// The rounding errors of a transform add up like a random walk over its stages.
template <class S>
double tolerance(Index length) {
  return std::log2(static_cast<double>(length)) / 2 *
         static_cast<double>(std::numeric_limits<S>::epsilon());
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("the forward transform is the literal one in every lane", "[fft]",
                        support::TestScalars) {
  using S = TestType;
  for (Index length = 2; length <= 4096; length *= 2) {
    const FftPlan<S> plan(length);
    REQUIRE(plan.length() == length);
    auto z = random_tensor<S, 2>({plan.points(), plan.width}, static_cast<unsigned>(length));
    const Tensor<S, 2> before = z;
    plan.forward(z.data());
    for (const Index lane : {Index{0}, simd::lanes<S> - 1}) {
      const std::vector<Complex> expected = literal_transform(points_of_lane(before, lane));
      const std::vector<Complex> transformed = points_of_lane(z, lane);
      std::vector<Complex> got;
      for (Index k = 0; k < plan.points(); ++k) {
        got.push_back(transformed[static_cast<std::size_t>(plan.frequency(k))]);
      }
      CAPTURE(length, lane);
      CHECK(relative_error(got, expected) <= tolerance<S>(length));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("the inverse transform undoes the forward one", "[fft]",
                        support::TestScalars) {
  using S = TestType;
  for (Index length = 2; length <= 65536; length *= 2) {
    const FftPlan<S> plan(length);
    auto z = random_tensor<S, 2>({plan.points(), plan.width}, 7);
    const Tensor<S, 2> before = z;
    plan.forward(z.data());
    plan.inverse(z.data());
    for (Index i = 0; i < z.size(); ++i) z.data()[i] /= static_cast<S>(plan.points());
    CAPTURE(length);
    CHECK(support::relative_error(z.view(), before.view()) <= 2 * tolerance<S>(length));
  }
}

TEST_CASE("two halves of a packed real sequence give its spectrum", "[fft]") {
  for (const Index length : {2, 8, 64, 512}) {
    const FftPlan<double> plan(length);
    const Index points = plan.points();
    auto z = random_tensor<double, 2>({points, plan.width}, 3);
    const std::vector<Complex> packed = points_of_lane(z, 1 % simd::lanes<double>);
    std::vector<Complex> real;
    for (const Complex& point : packed) real.push_back(point.real()), real.push_back(point.imag());
    plan.forward(z.data());
    const std::vector<Complex> transformed = points_of_lane(z, 1 % simd::lanes<double>);
    const std::vector<Complex> roots = roots_of_unity(length);
    std::vector<Complex> spectrum;
    for (Index k = 0; k < length; ++k) {
      const auto at = [&](Index frequency) {
        return transformed[static_cast<std::size_t>(plan.frequency(frequency % points))];
      };
      const Complex a = at(k), b = std::conj(at(points - k % points));
      const Complex even = (a + b) / 2.0L, odd = (a - b) / Complex(0, 2);
      spectrum.push_back(even + roots[static_cast<std::size_t>(k)] * odd);
    }
    CHECK(relative_error(spectrum, literal_transform(real)) <= 1e-14);
  }
}

TEMPLATE_LIST_TEST_CASE("a filter meets each pair of frequencies k and -k once", "[fft]",
                        support::TestScalars) {
  using S = TestType;
  for (Index length = 64; length <= 131072; length *= 2) {
    const FftPlan<S> plan(length);
    const Index points = plan.points(), lanes = simd::lanes<S>;
    Tensor<S, 2> z({points, plan.width}), row({1, lanes});
    std::vector<int> seen(static_cast<std::size_t>(points)), entries(seen.size() / 2 + 1);
    bool mirrored = true;
    plan.filter({row.data(), lanes, 0, 1}, {row.data(), lanes, 0, 1}, z.data(),
                [&](const S* a, const S* b, Index entry, Index count) {
                  for (; count > 0; --count, a += plan.width, b -= plan.width, ++entry) {
                    const Index low = (a - z.data()) / plan.width,
                                high = (b - z.data()) / plan.width;
                    mirrored &= (plan.frequency(low) + plan.frequency(high)) % points == 0;
                    ++seen.at(static_cast<std::size_t>(low));
                    if (low != high) ++seen.at(static_cast<std::size_t>(high));
                    ++entries.at(static_cast<std::size_t>(entry));
                    mirrored &= low == plan.position(entry);
                  }
                });
    CAPTURE(length);
    CHECK(mirrored);
    CHECK(seen == std::vector<int>(seen.size(), 1));
    CHECK(entries == std::vector<int>(entries.size(), 1));
  }
}

TEMPLATE_LIST_TEST_CASE("a filter of nothing gives the rows back, and writes no others", "[fft]",
                        support::TestScalars) {
  using S = TestType;
  const auto nothing = [](S*, S*, Index, Index) {};
  const S guard = 12345;
  for (const Index length : {64, 128, 256, 2048}) {
    const FftPlan<S> plan(length);
    const Index lanes = simd::lanes<S>, stride = lanes + 3;
    Tensor<S, 2> z({plan.points(), plan.width});
    for (const Index first : {Index{0}, Index{1}, length / 2 - 1, length / 2, length - 2}) {
      for (const Index count : {Index{0}, Index{1}, Index{2}, length / 2, length}) {
        if (first + count > length) continue;
        const auto rows = random_tensor<S, 2>({length, stride}, 5);
        fill(z.view(), std::numeric_limits<S>::quiet_NaN());
        Tensor<S, 2> out({length + 2, stride});
        fill(out.view(), guard);
        // All rows in, some out.
        plan.filter({rows.data(), stride, 0, length}, {&out(1, 0), stride, first, count}, z.data(),
                    nothing);
        const auto wanted = out.view().template slice<0>(1, count).template slice<1>(0, lanes);
        Tensor<S, 2> expected({count, lanes});
        for (Index r = 0; r < count; ++r) {
          for (Index lane = 0; lane < lanes; ++lane) {
            expected(r, lane) = rows(first + r, lane) * static_cast<S>(plan.points());
          }
        }
        CAPTURE(length, first, count);
        CHECK(support::relative_error(wanted, expected.view()) <= 4 * tolerance<S>(length));
        fill(wanted, guard);
        bool untouched = true;
        for (Index i = 0; i < out.size(); ++i) untouched &= out.data()[i] == guard;
        CHECK(untouched);

        // Some rows in, all out: the others are zero.
        Tensor<S, 2> all({length, lanes}), padded({length, lanes});
        for (Index r = 0; r < count; ++r) {
          for (Index lane = 0; lane < lanes; ++lane) {
            padded(first + r, lane) = rows(r, lane) * static_cast<S>(plan.points());
          }
        }
        plan.filter({rows.data(), stride, first, count}, {all.data(), lanes, 0, length}, z.data(),
                    nothing);
        if (count > 0) {
          CHECK(support::relative_error(all.view(), padded.view()) <= 4 * tolerance<S>(length));
        } else {
          CHECK(same_bits(all.view(), padded.view()));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("lanes neither meet nor differ", "[fft]", support::TestScalars) {
  using S = TestType;
  for (const Index length : {4, 64, 1024, 16384}) {
    const FftPlan<S> plan(length);
    const Index lanes = simd::lanes<S>;
    auto z = random_tensor<S, 2>({plan.points(), plan.width}, 11);
    for (Index j = 0; j < plan.points(); ++j) {
      for (Index i = 0; i < plan.width; ++i) z(j, i) = z(j, i / lanes * lanes);
    }
    z(plan.points() / 2, lanes - 1) = std::numeric_limits<S>::quiet_NaN();
    plan.forward(z.data());
    plan.inverse(z.data());
    const View<const S, 2> result = z.view();
    for (Index lane = 1; lane < lanes; ++lane) {
      const bool same =
          same_bits(result.template at<1>(lane), result.template at<1>(0)) &&
          same_bits(result.template at<1>(lanes + lane), result.template at<1>(lanes));
      CHECK(same == (lane < lanes - 1));
    }
    CHECK((lanes == 1 || std::isfinite(static_cast<double>(z(0, 0)))));
  }
}

TEST_CASE("only powers of two have a plan", "[fft]") {
  for (const Index length : {-2, 0, 1, 3, 12, 1023}) {
    CHECK_THROWS_AS(FftPlan<float>(length), ShapeError);
  }
}
