#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/memory/delta_rule.hpp"
#include "support/allocations.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/memory.hpp"
#include "support/thread_executor.hpp"

namespace {

using namespace seqmix;
using support::algorithms;
using support::check_law;
using support::check_within;
using support::flat;
using support::fresh;
using support::poisoned;
using support::same_bits;
using support::TestCall;
using support::text;
using Sizes = support::MemorySizes;
template <class S>
using Result = support::MemoryResult<S>;

enum class Kind { none, scalar, vector };
constexpr Kind kinds[] = {Kind::none, Kind::scalar, Kind::vector};

/// Unit keys, numbers of float whatever S. A share of 5 % of the log decays is `reset`.
template <class S>
struct Problem {
  Kind kind;
  Sizes n;
  double scale = 0.5;
  Tensor<S, 4> q, k, v, state, log;  // log: [B, T, H, K]
  Tensor<S, 3> beta, head_log;       // [B, T, H]

  Problem(Kind decay, Sizes sizes, double reset = 0, double largest_beta = 1, unsigned seed = 1)
      : kind(decay), n(sizes) {
    const auto [B, T, H, G, K, V] = sizes;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto numbers = [&](Shape<4> shape) {
      Tensor<S, 4> tensor(shape);
      for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<S>(normal(random));
      return tensor;
    };
    const auto make_gates = [&](auto& tensor) {
      for (Index i = 0; i < tensor.size(); ++i) {
        const float gate = -std::exp(normal(random) - 2);
        tensor.data()[i] = static_cast<S>(random() % 20 == 0 ? static_cast<float>(reset) : gate);
      }
    };
    q = numbers({B, T, G, K}), k = numbers({B, T, G, K}), v = numbers({B, T, H, V});
    state = numbers({B, H, K, V});
    for (Index row = 0; row < B * T * G; ++row) {
      float square = 0;
      S* const key = k.data() + row * K;
      for (Index i = 0; i < K; ++i) square += static_cast<float>(key[i] * key[i]);
      for (Index i = 0; i < K; ++i) {
        key[i] = static_cast<S>(static_cast<float>(key[i]) / std::sqrt(square));
      }
    }
    beta = Tensor<S, 3>({B, T, H});
    for (Index i = 0; i < beta.size(); ++i) {
      const double share = 1 / (1 + std::exp(-static_cast<double>(normal(random))));
      beta.data()[i] = static_cast<S>(static_cast<float>(largest_beta * share));
    }
    log = Tensor<S, 4>({B, T, H, K}), make_gates(log);
    head_log = Tensor<S, 3>({B, T, H}), make_gates(head_log);
  }

  double log_at(Index b, Index t, Index h, Index i) const {
    if (kind == Kind::none) return 0;
    return static_cast<double>(kind == Kind::scalar ? head_log(b, t, h) : log(b, t, h, i));
  }
};

/// The recurrence as it is written, in R.
template <class R, class S>
Result<R> literal(const Problem<S>& p) {
  std::vector<R> found(static_cast<std::size_t>(p.n.V));
  return support::recurrence<R>(p, [&](Index b, Index t, Index h, View<R, 2> memory, View<R, 1> o) {
    const Index g = h / (p.n.H / p.n.G);
    std::fill(found.begin(), found.end(), R(0));
    for (Index i = 0; i < p.n.K; ++i) {
      const R factor = std::exp(static_cast<R>(p.log_at(b, t, h, i)));
      const R key = static_cast<R>(p.k(b, t, g, i));
      R* const cells = &memory(i, 0);
      for (std::size_t j = 0; j < found.size(); ++j) {
        cells[j] *= factor, found[j] += key * cells[j];
      }
    }
    for (Index j = 0; j < p.n.V; ++j) {
      R& write = found[static_cast<std::size_t>(j)];
      write = static_cast<R>(p.beta(b, t, h)) * (static_cast<R>(p.v(b, t, h, j)) - write);
    }
    for (Index i = 0; i < p.n.K; ++i) {
      const R key = static_cast<R>(p.k(b, t, g, i)), query = static_cast<R>(p.q(b, t, g, i));
      R* const cells = &memory(i, 0);
      for (std::size_t j = 0; j < found.size(); ++j) {
        cells[j] += key * found[j], o.data()[j] += query * cells[j];
      }
    }
    for (Index j = 0; j < p.n.V; ++j) o[j] *= static_cast<R>(p.scale);
  });
}

/// Tokens [first, first + count) of all rows behind each other.
template <class S>
void run_part(const Problem<S>& p, View<S, 4> state, View<S, 3> o, Index first, Index count,
              const Call& call) {
  const auto part = [&](const auto& tensor) {
    return flat(tensor).slice(axis::time, first, count);
  };
  const auto run = [&](const auto& decay) {
    delta_rule(part(p.q), part(p.k), part(p.v), part(p.beta), decay, p.scale, state,
               o.slice(axis::time, first, count), call);
  };
  if (p.kind == Kind::none) {
    run(NoDecay{});
  } else if (p.kind == Kind::scalar) {
    run(ScalarDecay<S>{part(p.head_log)});
  } else {
    run(VectorDecay<S>{part(p.log)});
  }
}

/// Pieces of `piece` tokens, on outputs full of NaN and a copy of the initial state.
template <class S>
Result<S> run(const Problem<S>& p, Context& context, Index piece = -1) {
  const Index B = p.n.B, T = p.n.T;
  Result<S> result = fresh(p);
  if (piece < 0) {
    run_part(p, result.state.view(), flat(result.o), 0, B * T, TestCall(context, B, T));
    return result;
  }
  for (Index row = 0; row < B; ++row) {
    for (Index first = 0; first < T; first += piece) {
      const Index count = std::min(piece, T - first);
      run_part(p, result.state.view(), flat(result.o), row * T + first, count,
               TestCall(context, {{row, 0, count, Form::parallel}}));
    }
  }
  return result;
}
template <class S>
Result<S> run(const Problem<S>& p, Algorithm algorithm, Index piece = -1) {
  Context context = poisoned(algorithm);
  return run(p, context, piece);
}

void check_double(Kind kind, Sizes n, double reset = 0) {
  const Problem<double> p(kind, n, reset, 1, static_cast<unsigned>(n.K + 131 * n.V + n.T));
  const Result<double> expected = literal<double>(p);
  for (const Algorithm algorithm : algorithms) {
    INFO(text(n, kind, algorithm));
    const Result<double> got = run(p, algorithm);
    check_within(1e-12, got, expected);
  }
}

}  // namespace

TEST_CASE("delta_rule: both algorithms are the recurrence") {
  constexpr Index lengths[] = {1, 2, 15, 16, 17, 37, 131};
  std::size_t next = 0;
  for (const Index K : {1, 3, 8, 17, 64}) {
    for (const Index V : {1, 7, 16, 65, 128}) {
      const Index T = lengths[next++ % 7], H = 1 + static_cast<Index>(next % 3);
      for (const Kind kind : kinds) check_double(kind, {2, T, H, H % 2 == 0 ? 1 : H, K, V});
    }
  }
  for (const Index heads_per_group : {1, 2, 4, 5}) {
    for (const Kind kind : kinds) check_double(kind, {1, 70, 2 * heads_per_group, 2, 9, 33});
  }
  for (const Kind kind : kinds) check_double(kind, {1, 37, 1, 1, 9, 300});
}

TEST_CASE("delta_rule: any cut gives the same, steps too") {
  for (const Kind kind : kinds) {
    const Problem<double> p(kind, {.B = 2, .T = 131, .H = 4, .G = 2, .K = 19, .V = 37}, -50);
    for (const Algorithm algorithm : algorithms) {
      INFO(text(p.n, kind, algorithm));
      const Result<double> whole = run(p, algorithm);
      CHECK(run(p, algorithm, 64) == whole);
      const Result<double> pieces = run(p, algorithm, 7);
      check_within(1e-12, pieces, whole);
    }
    CHECK(run(p, Algorithm::recurrent, 1) == run(p, Algorithm::recurrent));
  }
}

TEST_CASE("delta_rule: float errors stay within the law in every regime of gates") {
  for (const Kind kind : kinds) {
    for (const double reset :
         {0.0, -20.0, -87.0, -1000.0, -1e6, -std::numeric_limits<double>::infinity()}) {
      for (const double largest_beta : {1.0, 2.0}) {
        const Problem<float> p(kind, {.B = 1, .T = 300, .H = 2, .G = 1, .K = 64, .V = 64}, reset,
                               largest_beta);
        const Result<double> expected = literal<double>(p);
        const Result<float> twin = literal<float>(p);
        for (const Algorithm algorithm : algorithms) {
          INFO(text(p.n, kind, algorithm) + ", reset " + std::to_string(reset));
          const Result<float> got = run(p, algorithm);
          check_law(got, twin, expected);
        }
      }
    }
  }
}

TEST_CASE("delta_rule: what is left of a decayed memory is no subnormal number") {
  for (const Kind kind : {Kind::scalar, Kind::vector}) {
    Problem<float> p(kind, {.B = 1, .T = 160, .H = 1, .G = 1, .K = 33, .V = 16});
    fill(p.log.view(), -1.F), fill(p.head_log.view(), -1.F);
    fill(p.v.view().slice<1>(64, 96), 0);
    for (const Algorithm algorithm : algorithms) {
      const Result<float> got = run(p, algorithm);
      for (Index i = 0; i < got.state.size(); ++i) {
        const float cell = std::abs(got.state.data()[i]);
        REQUIRE((cell == 0 || cell >= std::numeric_limits<float>::min()));
      }
    }
  }
}

TEST_CASE("delta_rule: threads and batch position change no bit, NaN stays in its row") {
  for (const Kind kind : kinds) {
    const Problem<float> p(kind, {.B = 3, .T = 70, .H = 4, .G = 2, .K = 17, .V = 260});
    for (const Algorithm algorithm : algorithms) {
      INFO(text(p.n, kind, algorithm));
      const Result<float> serial = run(p, algorithm);
      for (const Index threads : {2, 3}) {
        support::ThreadExecutor executor(threads);
        Context context(executor);
        context.set_algorithm(algorithm);
        CHECK(run(p, context) == serial);
      }
      Problem<float> poisoned = p;
      poisoned.v(1, 3, 0, 0) = std::numeric_limits<float>::quiet_NaN();
      const Result<float> got = run(poisoned, algorithm);
      for (const Index b : {0, 2}) {
        CHECK(same_bits(got.o.view().slice<0>(b, 1), serial.o.view().slice<0>(b, 1)));
        CHECK(same_bits(got.state.view().slice<0>(b, 1), serial.state.view().slice<0>(b, 1)));
      }
    }
  }
}

TEST_CASE("delta_rule: segments keep their bits in any company, rows left out their numbers") {
  using support::company_rows, support::company_tokens, support::row_without_company;
  for (const Kind kind : kinds) {
    for (const auto& [H, G, K, V] : {Shape<4>{6, 2, 17, 37}.extents, {1, 1, 40, 300}}) {
      const Problem<float> p(kind, {.B = 1, .T = company_tokens, .H = H, .G = G, .K = K, .V = V});
      const Problem<float> states(kind,
                                  {.B = company_rows, .T = 1, .H = H, .G = G, .K = K, .V = V});
      // Rows of the state may lie at any stride.
      Result<float> fresh{Tensor<float, 4>({1, company_tokens, H, V}),
                          Tensor<float, 4>({company_rows, H + 1, K + 2, V + 3})};
      const auto window = [&](auto& wide) {
        return wide.view()
            .slice(axis::head, 1, p.n.H)
            .template slice<2>(1, p.n.K)
            .slice(axis::channel, 2, p.n.V);
      };
      copy(states.state.view(), window(fresh.state));
      for (const Algorithm algorithm : algorithms) {
        INFO(text(p.n, kind, algorithm));
        const auto run_call = [&](Index first, Index count, Result<float>& result,
                                  const Call& call) {
          run_part(p, window(result.state), flat(result.o), first, count, call);
        };
        const Result<float> got =
            support::check_company(fresh, run_call, std::equal_to<>(), algorithm);
        CHECK(same_bits(got.state.view()[row_without_company],
                        fresh.state.view()[row_without_company]));
      }
    }
  }
}

TEST_CASE("delta_rule: how heads and columns are shared out to tasks changes no bit") {
  for (const Kind kind : kinds) {
    const Problem<float> p(kind, {.B = 1, .T = 70, .H = 18, .G = 9, .K = 17, .V = 70});
    for (const Algorithm algorithm : algorithms) {
      INFO(text(p.n, kind, algorithm));
      const Result<float> whole = run(p, algorithm);
      for (const Index h : {0, 7, 17}) {
        Problem<float> alone = p;
        const auto take = [](auto& tensor, Index first) {
          const auto part = tensor.view().template slice<2>(first, 1);
          std::remove_reference_t<decltype(tensor)> own(part.shape());
          copy(part, own.view()), tensor = std::move(own);
        };
        take(alone.q, h / 2), take(alone.k, h / 2), take(alone.v, h), take(alone.log, h);
        take(alone.beta, h), take(alone.head_log, h);
        alone.n.H = alone.n.G = 1;
        alone.state = Tensor<float, 4>({1, 1, 17, 70});
        copy(p.state.view().slice<1>(h, 1), alone.state.view());
        const Result<float> got = run(alone, algorithm);
        CHECK(same_bits(got.o.view(), whole.o.view().slice<2>(h, 1)));
        CHECK(same_bits(got.state.view(), whole.state.view().slice<1>(h, 1)));
      }
    }
  }
}

TEST_CASE("delta_rule: a sequence takes chunks unless the recurrence is asked for") {
  for (const Kind kind : kinds) {
    const Problem<float> p(kind, {.B = 1, .T = 40, .H = 1, .G = 1, .K = 64, .V = 64});
    CHECK(run(p, Algorithm::automatic) == run(p, Algorithm::chunked));
    CHECK_FALSE(run(p, Algorithm::automatic) == run(p, Algorithm::recurrent));
  }
}

TEST_CASE("delta_rule: a wrong shape is named") {
  const Problem<float> p(Kind::none, {.B = 1, .T = 4, .H = 3, .G = 1, .K = 5, .V = 6});
  Tensor<float, 4> o({1, 4, 3, 6}), state({1, 3, 5, 6});
  Context context;
  const auto run_with = [&](View<const float, 3> k, View<const float, 2> beta) {
    delta_rule(flat(p.q), k, flat(p.v), beta, NoDecay{}, 1, state.view(), flat(o),
               TestCall(context, 1, 4));
  };
  const View<const float, 3> k = flat(p.k);
  const View<const float, 2> beta = flat(p.beta);
  CHECK_NOTHROW(run_with(k, beta));
  CHECK_THROWS_AS(run_with(k.slice(axis::channel, 0, 4), beta), ShapeError);
  CHECK_THROWS_AS(run_with(k, beta.slice(axis::channel, 0, 2)), ShapeError);
}
