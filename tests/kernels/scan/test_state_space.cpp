#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <complex>
#include <limits>
#include <random>
#include <vector>

#include "seqmix/kernels/scan/state_space.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/parts.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::gather;
using support::Parts;
using support::parts_of;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;
using Complex = std::complex<double>;

namespace {

/// A random system whose states turn at up to 20 a unit of time.
ContinuousSystem random_system(Index states, bool low_rank, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  ContinuousSystem system;
  system.dt = std::exp(std::log(0.005) + 3 * uniform(random));
  const auto complex = [&] { return Complex(normal(random), normal(random)); };
  for (Index n = 0; n < states; ++n) {
    system.lambda.emplace_back(-0.2 - uniform(random), 20 * uniform(random));
    system.B.push_back(complex()), system.C.push_back(complex());
    if (low_rank) system.P.push_back(complex());
  }
  return system;
}
std::vector<DiscreteSystem> random_systems(Index channels, Index states, bool low_rank,
                                           unsigned seed) {
  std::mt19937 random(seed);
  std::vector<DiscreteSystem> systems;
  for (Index d = 0; d < channels; ++d) {
    systems.push_back(discretize_bilinear(random_system(states, low_rank, random)));
  }
  return systems;
}
template <class S>
StateSpace<S> state_space_of(const std::vector<DiscreteSystem>& systems, bool low_rank) {
  return StateSpace<S>(static_cast<Index>(systems.size()), static_cast<Index>(systems[0].states()),
                       low_rank, [&](Index d) { return systems[static_cast<std::size_t>(d)]; });
}

Complex dot(const std::vector<Complex>& a, const std::vector<Complex>& b) {
  Complex sum = 0;
  for (std::size_t n = 0; n < a.size(); ++n) sum += a[n] * b[n];
  return sum;
}
void literal_step(const DiscreteSystem& system, double u, std::vector<Complex>& x) {
  const double through = system.M.empty() ? 0 : dot(system.M, x).real();
  for (std::size_t n = 0; n < x.size(); ++n) {
    x[n] = system.F[n] * x[n] + system.B[n] * u;
    if (!system.G.empty()) x[n] -= system.G[n] * through;
  }
}

/// What `state_space` computes, as it is written; the state advances.
Tensor<double, 3> literal(const Tensor<double, 3>& u, const std::vector<DiscreteSystem>& systems,
                          const Tensor<double, 1>& skip, Tensor<double, 4>& state) {
  Tensor<double, 3> y(u.shape());
  for (Index b = 0; b < u.extent(0); ++b) {
    for (Index d = 0; d < u.extent(2); ++d) {
      const DiscreteSystem& system = systems[static_cast<std::size_t>(d)];
      std::vector<Complex> x(system.states());
      for (std::size_t n = 0; n < x.size(); ++n) {
        x[n] = {state(b, static_cast<Index>(n), 0, d), state(b, static_cast<Index>(n), 1, d)};
      }
      for (Index t = 0; t < u.extent(1); ++t) {
        literal_step(system, u(b, t, d), x);
        y(b, t, d) = dot(system.C, x).real() + skip[d] * u(b, t, d);
      }
      for (std::size_t n = 0; n < x.size(); ++n) {
        state(b, static_cast<Index>(n), 0, d) = x[n].real();
        state(b, static_cast<Index>(n), 1, d) = x[n].imag();
      }
    }
  }
  return y;
}

template <class S, Index Rank>
Tensor<S, Rank> as(const Tensor<double, Rank>& numbers) {
  Tensor<S, Rank> result(numbers.shape());
  copy(numbers.view(), result.view());
  return result;
}

/// Each channel's system in the dense form, all states: Ā and B̄ by elimination.
std::vector<std::vector<Complex>> dense_solution(std::vector<std::vector<Complex>> A,
                                                 std::vector<std::vector<Complex>> B) {
  const std::size_t size = A.size();
  for (std::size_t k = 0; k < size; ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k; i < size; ++i) {
      if (std::abs(A[i][k]) > std::abs(A[pivot][k])) pivot = i;
    }
    std::swap(A[k], A[pivot]), std::swap(B[k], B[pivot]);
    for (std::size_t i = 0; i < size; ++i) {
      if (i == k) continue;
      const Complex factor = A[i][k] / A[k][k];
      for (std::size_t j = 0; j < size; ++j) A[i][j] -= factor * A[k][j];
      for (std::size_t j = 0; j < B[i].size(); ++j) B[i][j] -= factor * B[k][j];
    }
  }
  for (std::size_t k = 0; k < size; ++k) {
    for (Complex& number : B[k]) number /= A[k][k];
  }
  return B;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("state_space is its literal loop in both algorithms, from any state", "",
                        support::TestScalars) {
  using S = TestType;
  const double tolerance = std::is_same_v<S, double> ? 1e-12 : 2e-5;
  for (const bool low_rank : {false, true}) {
    for (const Index N : {1, 2, 5}) {
      for (const Index D : {1, 7, 19}) {
        const auto systems = random_systems(D, N, low_rank, 1);
        const auto system = state_space_of<S>(systems, low_rank);
        const auto skip = random_tensor<double, 1>({D}, 2);
        for (const Index T : {1, 2, 63, 65, 150}) {
          const auto u = random_tensor<double, 3>({2, T, D}, 3);
          const auto start = random_tensor<double, 4>({2, N, 2, D}, 4);
          auto end = start;
          const auto expected = literal(u, systems, skip, end);
          for (const Algorithm algorithm : {Algorithm::chunked, Algorithm::recurrent}) {
            INFO(low_rank << " N " << N << " D " << D << " T " << T << " "
                          << static_cast<int>(algorithm));
            Context context = support::poisoned(algorithm);
            auto state = as<S>(start);
            auto y = as<S>(u);  // y may be u
            state_space<S>(flat(y), system, as<S>(skip), state, flat(y), TestCall(context, 2, T));
            CHECK(relative_error(y.view(), expected.view()) < tolerance);
            CHECK(relative_error(state.view(), end.view()) < tolerance);
          }
        }
      }
    }
  }
}

TEST_CASE("a long convolution runs in several transforms") {
  const Index T = 4500, D = 3;
  for (const bool low_rank : {false, true}) {
    const auto systems = random_systems(D, 3, low_rank, 5);
    const auto system = state_space_of<double>(systems, low_rank);
    const Tensor<double, 1> skip({D});
    const auto u = random_tensor<double, 3>({1, T, D}, 6);
    Tensor<double, 4> end({1, 3, 2, D}), state({1, 3, 2, D});
    const auto expected = literal(u, systems, skip, end);
    Context context;
    context.set_algorithm(Algorithm::chunked);
    Tensor<double, 3> y(u.shape());
    state_space<double>(flat(u), system, skip, state, flat(y), TestCall(context, 1, T));
    CHECK(relative_error(y.view(), expected.view()) < 1e-11);
    CHECK(relative_error(state.view(), end.view()) < 1e-12);
  }
}

namespace {

/// Four rows of T tokens through a random system, in calls of any parts.
struct Rows {
  struct Result {
    Tensor<float, 3> y;
    Tensor<float, 4> state;
    bool operator==(const Result& other) const {
      return same_bits(y.view(), other.y.view()) && same_bits(state.view(), other.state.view());
    }
  };
  static constexpr Index B = 4, D = 21, N = 4;
  StateSpace<float> system;
  Tensor<float, 1> skip = random_tensor<float, 1>({D}, 8);
  Tensor<float, 3> u;

  Rows(Index T, bool low_rank)
      : system(state_space_of<float>(random_systems(D, N, low_rank, 7), low_rank)),
        u(random_tensor<float, 3>({B, T, D}, 9)) {}

  Result fresh() const { return {Tensor<float, 3>(u.shape()), Tensor<float, 4>({B, N, 2, D})}; }
  void run(const Parts& parts, Result& result, Context& context) const {
    const auto segments = support::segments_of(parts);
    auto some = gather(u, parts);
    state_space<float>(some, system, skip, result.state, some.view(), Call(context, segments));
    support::scatter(some, parts, result.y.view());
  }
  Result run(const std::vector<Parts>& calls, Context& context) const {
    Result result = fresh();
    for (const Parts& parts : calls) run(parts, result, context);
    return result;
  }
};

}  // namespace

TEST_CASE("any cut, company and number of threads gives the same bits of the recurrence") {
  const Index T = 131;
  for (const bool low_rank : {false, true}) {
    const Rows rows(T, low_rank);
    Context context;
    support::check_parts(T, rows.fresh(), rows.run({parts_of(0, rows.B, 0, T)}, context),
                         [&](const Parts& parts, Rows::Result& result, Context& by) {
                           rows.run(parts, result, by);
                         });
  }
}

TEST_CASE("transforms of state_space have the same bits in any company and any cut at 64 tokens") {
  const Index T = 200;
  for (const bool low_rank : {false, true}) {
    const Rows rows(T, low_rank);
    const auto run = [&](const std::vector<Parts>& calls, Index threads) {
      support::ThreadExecutor executor(threads);
      Context context(executor);
      context.set_algorithm(Algorithm::chunked);
      return rows.run(calls, context);
    };
    const auto expected = run(
        {parts_of(0, 1, 0, 193), parts_of(1, 1, 0, T), parts_of(2, 1, 0, 7), parts_of(3, 1, 0, 65)},
        1);
    const std::vector<Parts> mixed{{{3, 0, 65}, {1, 0, 64}, {2, 0, 7}},
                                   {{1, 64, 128}, {0, 0, 192}},
                                   {{0, 192, 1, Form::recurrent}, {1, 192, 8}}};
    CHECK(run(mixed, 1) == expected);
    CHECK(run(mixed, 3) == expected);
    // A recurrent segment takes the recurrence whatever the algorithm.
    Context context;
    CHECK(run({parts_of(0, rows.B, 0, T, Form::recurrent)}, 1) ==
          rows.run({parts_of(0, rows.B, 0, T)}, context));
  }
}

TEST_CASE("Woodbury's bilinear transform is the dense one") {
  std::mt19937 random(11);
  for (const Index N : {1, 3, 8}) {
    const auto system = random_system(N, true, random);
    const auto discrete = discretize_bilinear(system);
    const auto half = static_cast<std::size_t>(N), size = 2 * half;
    const auto all = [&](const std::vector<Complex>& from, std::size_t i) {
      return i < half ? from[i] : std::conj(from[i - half]);
    };
    std::vector<std::vector<Complex>> minus(size), right(size);
    for (std::size_t i = 0; i < size; ++i) {
      for (std::size_t j = 0; j < size; ++j) {
        const Complex A = (i == j ? all(system.lambda, i) : Complex(0)) -
                          all(system.P, i) * std::conj(all(system.P, j));
        const Complex one = i == j ? 1 : 0;
        minus[i].push_back(one - system.dt / 2 * A), right[i].push_back(one + system.dt / 2 * A);
      }
      right[i].push_back(system.dt * all(system.B, i));
    }
    const auto dense = dense_solution(minus, right);  // (Ā, B̄)
    for (std::size_t i = 0; i < half; ++i) {
      CHECK(std::abs(dense[i][size] - discrete.B[i]) < 1e-14);
      for (std::size_t j = 0; j < size; ++j) {
        // Re(M·x) is half of a sum over all states.
        const Complex expected =
            (i == j ? discrete.F[i] : Complex(0)) - discrete.G[i] * all(discrete.M, j) / 2.0;
        CHECK(std::abs(dense[i][j] - expected) < 1e-14);
      }
    }
  }
}

TEST_CASE("the zero-order hold is exact for small and for large steps") {
  ContinuousSystem system;
  system.lambda = {{-0.5, 3}, {-1e-9, 0}, {-2e3, 40}, {0, 0}};
  system.B.assign(4, 1), system.C.assign(4, 1);
  system.dt = 0.125;
  const auto discrete = discretize_zoh(system);
  const std::complex<long double> z(-0.0625L, 0.375L);
  const auto expected = static_cast<Complex>((std::exp(z) - 1.0L) / (z / 0.125L));
  CHECK(std::abs(discrete.B[0] - expected) < 1e-16);
  CHECK(std::abs(discrete.B[1] - 0.125 * (1 - 0.5 * 0.125e-9)) < 1e-16);
  CHECK(std::abs(discrete.B[2] - -1.0 / Complex(-2e3, 40)) < 1e-18);
  CHECK(discrete.B[3] == 0.125);
}

TEST_CASE("Cauchy's sums give the impulse response that the powers of the matrix give") {
  constexpr Index lanes = simd::lanes<double>;
  const Index N = 6;
  const auto systems = random_systems(lanes, N, true, 13);
  const auto system = state_space_of<double>(systems, true);
  Context context;
  for (const Index L : {32, 256, 1024}) {
    Tensor<double, 2> h({L, lanes}), expected({L, lanes});
    cauchy_taps<double>(system.terms(0), FftPlan<double>(2 * L), h.view(), TestCall(context));
    for (Index d = 0; d < lanes; ++d) {
      std::vector<Complex> x(static_cast<std::size_t>(N));
      for (Index l = 0; l < L; ++l) {
        literal_step(systems[static_cast<std::size_t>(d)], l == 0 ? 1 : 0, x);
        expected(l, d) = dot(systems[static_cast<std::size_t>(d)].C, x).real();
      }
    }
    CHECK(relative_error(h.view(), expected.view()) < 1e-12);
  }
}

TEST_CASE("what cuts an impulse response is undone") {
  const auto original = random_systems(1, 5, true, 17)[0];
  for (const Index length : {1, 2, 37, 64, 1000}) {
    // C (1 - Ā^L): the response of each unit state, less that after L tokens.
    auto cut = original;
    for (std::size_t n = 0; n < cut.states(); ++n) {
      for (const Complex unit : {Complex(1), Complex(0, 1)}) {
        std::vector<Complex> x(cut.states());
        x[n] = unit;
        const double now = dot(original.C, x).real();
        for (Index l = 0; l < length; ++l) literal_step(original, 0, x);
        const double left = now - dot(original.C, x).real();
        unit == Complex(1) ? cut.C[n].real(left) : cut.C[n].imag(-left);
      }
    }
    undo_truncation(cut, length);
    for (std::size_t n = 0; n < cut.states(); ++n) {
      CHECK(std::abs(cut.C[n] - original.C[n]) < 1e-10 * std::abs(original.C[n]));
    }
  }
}

TEST_CASE("wrong shapes of state_space throw") {
  const auto system = state_space_of<float>(random_systems(4, 2, false, 19), false);
  Tensor<float, 3> u({1, 5, 4}), narrow({1, 5, 3});
  Tensor<float, 4> state({1, 2, 2, 4}), wrong({1, 3, 2, 4});
  const Tensor<float, 1> skip({4});
  Context context;
  const auto run = [&](View<const float, 3> from, View<float, 4> states, View<float, 3> to) {
    state_space<float>(flat(from), system, skip, states, flat(to), TestCall(context, 1, 5));
  };
  CHECK_THROWS_AS(run(u, wrong.view(), u.view()), ShapeError);
  CHECK_THROWS_AS(run(u, state.view(), narrow.view()), ShapeError);
  CHECK_THROWS_AS(run(narrow, state.view(), u.view()), ShapeError);
}
