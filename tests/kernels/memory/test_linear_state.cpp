#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/memory/linear_state.hpp"
#include "support/allocations.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/memory.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"

namespace {

using namespace seqmix;
using support::algorithms;
using support::check_law;
using support::check_within;
using support::error;
using support::flat;
using support::fresh;
using support::poisoned;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;
using support::text;
using Sizes = support::MemorySizes;
template <class S>
using Result = support::MemoryResult<S>;

constexpr double infinity = std::numeric_limits<double>::infinity();

/// The decay, and whether a token reads the state before it.
enum class Kind {
  none,
  scalar,
  vector,
  value,
  none_after,
  scalar_after,
  vector_after,
  value_after
};
constexpr Kind kinds[] = {Kind::none,         Kind::scalar,     Kind::vector,
                          Kind::value,        Kind::none_after, Kind::scalar_after,
                          Kind::vector_after, Kind::value_after};
constexpr Kind decaying[] = {Kind::scalar,       Kind::vector,       Kind::value,
                             Kind::scalar_after, Kind::vector_after, Kind::value_after};
constexpr bool reads_before(Kind kind) { return kind >= Kind::none_after; }
constexpr bool by_nothing(Kind kind) { return kind == Kind::none || kind == Kind::none_after; }
constexpr bool by_head(Kind kind) { return kind == Kind::scalar || kind == Kind::scalar_after; }
constexpr bool by_value(Kind kind) { return kind == Kind::value || kind == Kind::value_after; }
/// Whether a head has a row of log decays a token, of key channels or value columns.
constexpr bool by_row(Kind kind) { return !by_nothing(kind) && !by_head(kind); }

/// f of the decay of a kind, [T, H], [T, H, K] or [T, H, V].
template <class S>
void with_decay(Kind kind, View<const S, 2> head_log, View<const S, 3> log, auto&& f) {
  const auto ordered = [&](const auto& decay) {
    using Decay = std::remove_cvref_t<decltype(decay)>;
    if (reads_before(kind)) return f(ReadBefore<Decay>{decay});
    return f(decay);
  };
  if (by_nothing(kind)) return ordered(NoDecay{});
  if (by_head(kind)) return ordered(ScalarDecay<S>{head_log});
  if (by_value(kind)) return ordered(ValueDecay<S>{log});
  return ordered(VectorDecay<S>{log});
}

/// Gates log σ(z) / divisor, z normal; a share of 5 % is `reset` where that is negative. A divisor
/// of infinity forgets nothing.
struct Gates {
  double divisor = 16, reset = 0;
};

/// Inputs and initial state, numbers of float whatever S, so that float and double problems agree.
template <class S>
struct Problem {
  Kind kind;
  Sizes n;
  double scale = 0.25;
  Tensor<S, 4> q, k, v, state;
  Tensor<S, 4> log;       // [B, T, H, K] or [B, T, H, V]
  Tensor<S, 3> head_log;  // [B, T, H]

  Problem(Kind decay, Sizes sizes, Gates gates = {}, unsigned seed = 1) : kind(decay), n(sizes) {
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
        const double z = static_cast<double>(normal(random));
        const double gate = -std::log1p(std::exp(-z)) / gates.divisor;
        const bool reset = gates.reset < 0 && random() % 20 == 0;
        tensor.data()[i] = static_cast<S>(static_cast<float>(reset ? gates.reset : gate));
      }
    };
    q = numbers({B, T, G, K}), k = numbers({B, T, G, K}), v = numbers({B, T, H, V});
    state = numbers({B, H, K, V});
    if (by_row(kind)) log = Tensor<S, 4>({B, T, H, by_value(kind) ? V : K}), make_gates(log);
    if (by_head(kind)) head_log = Tensor<S, 3>({B, T, H}), make_gates(head_log);
  }

  double log_at(Index b, Index t, Index h, Index i) const {
    if (by_nothing(kind)) return 0;
    return static_cast<double>(by_head(kind) ? head_log(b, t, h) : log(b, t, h, i));
  }
};

/// The recurrence as it is written, in R.
template <class R, class S>
Result<R> literal(const Problem<S>& p) {
  const bool of_columns = by_value(p.kind);
  std::vector<R> factors(static_cast<std::size_t>(p.n.V));
  return support::recurrence<R>(p, [&](Index b, Index t, Index h, View<R, 2> memory, View<R, 1> o) {
    const Index g = h / (p.n.H / p.n.G);
    for (Index j = 0; j < p.n.V && of_columns; ++j) {
      factors[static_cast<std::size_t>(j)] = std::exp(static_cast<R>(p.log_at(b, t, h, j)));
    }
    for (Index i = 0; i < p.n.K; ++i) {
      const R row = of_columns ? R(1) : std::exp(static_cast<R>(p.log_at(b, t, h, i)));
      const R key = static_cast<R>(p.k(b, t, g, i)), query = static_cast<R>(p.q(b, t, g, i));
      for (Index j = 0; j < p.n.V; ++j) {
        const R a = of_columns ? factors[static_cast<std::size_t>(j)] : row;
        R& cell = memory(i, j);
        const R found = cell;
        cell = a * cell + key * static_cast<R>(p.v(b, t, h, j));
        o[j] += query * (reads_before(p.kind) ? found : cell);
      }
    }
    for (Index j = 0; j < p.n.V; ++j) o[j] *= static_cast<R>(p.scale);
  });
}

/// Tokens [first, first + count) of the batch rows [row, row + rows), those of `state` and `o`.
template <class S>
void run_part(Form form, const Problem<S>& p, View<S, 4> state, View<S, 4> o, Index first,
              Index count, Context& context, Index row = 0, Index rows = -1) {
  if (rows < 0) rows = p.n.B;
  const auto part = [&]<Index Rank>(const Tensor<S, Rank>& tensor) {
    Shape<Rank> shape = tensor.shape();
    shape[0] = rows, shape[1] = count;
    Tensor<S, Rank> result(shape);
    copy(tensor.view().template slice<0>(row, rows).template slice<1>(first, count), result.view());
    return result;
  };
  const auto q = part(p.q), k = part(p.k), v = part(p.v);
  const auto log = by_row(p.kind) ? part(p.log) : Tensor<S, 4>();
  const auto head_log = by_head(p.kind) ? part(p.head_log) : Tensor<S, 3>();
  Tensor<S, 4> y({rows, count, p.n.H, p.n.V});
  fill(y.view(), std::numeric_limits<S>::quiet_NaN());
  const TestCall call(context, rows, count, form);
  with_decay<S>(p.kind, flat(head_log), flat(log), [&](const auto& decay) {
    linear_state(flat(q), flat(k), flat(v), decay, p.scale, state, flat(y), call);
  });
  copy(y.view(), o.template slice<1>(first, count));
}

/// Tokens of all rows at once by any decay.
template <class S>
void run_all(Form form, const Problem<S>& p, const auto& decay, Result<S>& result,
             Context& context) {
  linear_state(flat(p.q), flat(p.k), flat(p.v), decay, p.scale, result.state.view(), flat(result.o),
               TestCall(context, p.n.B, p.n.T, form));
}

template <class S>
Result<S> run(const Problem<S>& p, Context& context) {
  Result<S> result = fresh(p);
  run_part(Form::parallel, p, result.state.view(), result.o.view(), 0, p.n.T, context);
  return result;
}
template <class S>
Result<S> run(const Problem<S>& p, Algorithm algorithm) {
  Context context = poisoned(algorithm);
  return run(p, context);
}

constexpr Index widths[] = {1, 3, 8, 16, 17, 64, 65, 128};
const Index lengths[] = {1,
                         2,
                         detail::chunk_length - 1,
                         detail::chunk_length + 1,
                         detail::packed_tokens - 1,
                         detail::packed_tokens + 1,
                         131,
                         300};

/// Both algorithms against the double recurrence, and against what the problem itself may not be.
void check_double(Kind kind, Sizes n, Gates gates) {
  const Problem<double> p(kind, n, gates, static_cast<unsigned>(n.K + 131 * n.V + n.T));
  const Result<double> expected = literal<double>(p);
  for (const Algorithm algorithm : algorithms) {
    INFO(text(n, kind, algorithm));
    const Result<double> got = run(p, algorithm);
    check_within(1e-12, got, expected);
  }
}

/// The law in float: at most twice the error of the literal float recurrence, plus 4 eps.
void check_float(Kind kind, Sizes n, Gates gates, unsigned seed = 1) {
  const Problem<float> p(kind, n, gates, seed);
  const Result<double> expected = literal<double>(p);
  const Result<float> twin = literal<float>(p);
  for (const Algorithm algorithm : algorithms) {
    INFO(text(n, kind, algorithm) + ", divisor " + std::to_string(gates.divisor) + ", reset " +
         std::to_string(gates.reset));
    const Result<float> got = run(p, algorithm);
    check_law(got, twin, expected);
  }
}

}  // namespace

TEST_CASE("linear_state: both algorithms are the recurrence, every head shape") {
  unsigned next = 0;
  for (const Index K : widths) {
    for (const Index V : widths) {
      const Index H = Index{1} << (next % 3), G = H >> (next / 3 % (next % 3 + 1));
      const Index T = lengths[next++ % 8];
      for (const Kind kind : kinds) {
        check_double(kind, {.B = 2, .T = T, .H = H, .G = G, .K = K, .V = V}, {.divisor = 1});
      }
    }
  }
}

TEST_CASE("linear_state: both algorithms are the recurrence, every length and grouping") {
  for (const Index T : lengths) {
    for (const Index heads_per_group : {1, 2, 4, 5}) {
      for (const Kind kind : kinds) {
        check_double(kind, {.B = 1, .T = T, .H = 2 * heads_per_group, .G = 2, .K = 17, .V = 33},
                     {.reset = -50});
      }
    }
  }
}

TEST_CASE("linear_state: value columns in panels are the recurrence") {
  for (const Kind kind : kinds) {
    for (const Index V : {255, 256, 300, 1031}) {
      check_double(kind, {.B = 1, .T = 37, .H = 1, .G = 1, .K = 9, .V = V}, {});
    }
  }
}

TEST_CASE("linear_state: float errors stay within the law in every regime of gates") {
  const Sizes n{.B = 1, .T = 300, .H = 2, .G = 1, .K = 64, .V = 64};
  check_float(Kind::none, n, {}), check_float(Kind::none_after, n, {});
  for (const Kind kind : decaying) {
    for (const double divisor : {16.0, 1.0, 1.0 / 64, infinity}) {
      for (const double reset : {0.0, -20.0, -50.0, -87.0, -1000.0, -1e6, -infinity}) {
        check_float(kind, n, {.divisor = divisor, .reset = reset});
      }
    }
    check_float(kind, {.B = 1, .T = 131, .H = 1, .G = 1, .K = 17, .V = 5}, {.reset = -50}, 2);
  }
}

TEST_CASE("linear_state: slow decays over a long sequence") {
  // log σ(0) / divisor is near log(1 - 2^-12), with z drawn anew at each token or never.
  const double slow = std::log1p(-std::exp2(-12));
  const Sizes n{.B = 1, .T = 4096, .H = 1, .G = 1, .K = 16, .V = 16};
  for (const Kind kind : decaying) {
    check_float(kind, n, {.divisor = std::log(2.0) / -slow});
    Problem<float> p(kind, n);
    if (by_head(kind)) fill(p.head_log.view(), static_cast<float>(slow));
    if (by_row(kind)) fill(p.log.view(), static_cast<float>(slow));
    const Result<double> expected = literal<double>(p);
    const Result<float> twin = literal<float>(p);
    for (const Algorithm algorithm : algorithms) {
      INFO(text(n, kind, algorithm));
      const double slack = 4 * static_cast<double>(std::numeric_limits<float>::epsilon());
      CHECK(error(run(p, algorithm).o, expected.o) <= 2 * error(twin.o, expected.o) + slack);
    }
  }
}

TEST_CASE("linear_state: a reset leaves nothing of the past") {
  for (const Kind kind : {Kind::scalar, Kind::vector, Kind::value}) {
    for (const double reset : {-1e6, -infinity}) {
      const Sizes n{.B = 1, .T = 3 * detail::chunk_length, .H = 1, .G = 1, .K = 17, .V = 19};
      Problem<double> p(kind, n);
      // The first gate forgets an enormous state, and one inside a chunk the tokens before it.
      const Index inside = detail::chunk_length + 5;
      fill(p.state.view(), 1e300);
      Problem<double> without = p;
      fill(without.state.view(), 0);
      for (const Index t : {Index{0}, inside}) {
        if (by_head(kind)) p.head_log(0, t, 0) = reset, without.head_log(0, t, 0) = reset;
        if (by_row(kind)) {
          fill(p.log.view().slice<1>(t, 1), reset), fill(without.log.view().slice<1>(t, 1), reset);
        }
      }
      for (const Algorithm algorithm : algorithms) {
        INFO(text(n, kind, algorithm));
        const Result<double> got = run(p, algorithm);
        CHECK(got == run(without, algorithm));
        Problem<double> other = p;
        fill(other.v.view().slice<1>(0, inside), 3);
        const Result<double> changed = run(other, algorithm);
        const Index rest = n.T - inside;
        CHECK(same_bits(changed.o.view().slice<1>(inside, rest),
                        got.o.view().slice<1>(inside, rest)));
        CHECK_FALSE(
            same_bits(changed.o.view().slice<1>(0, inside), got.o.view().slice<1>(0, inside)));
      }
    }
  }
}

bool finite(const Tensor<float, 4>& x) {
  return std::all_of(x.data(), x.data() + x.size(),
                     [](float number) { return std::isfinite(number); });
}

TEST_CASE("linear_state: a product that a reset hides may be infinite") {
  const Index written = 33, reset = 34, read = 35;  // of one chunk
  for (const Kind kind : decaying) {
    Problem<float> p(kind, {.B = 1, .T = 70, .H = 1, .G = 1, .K = 8, .V = 4});
    for (Index i = 0; i < p.n.K; ++i) {
      p.k(0, written, 0, i) = p.q(0, read, 0, i) = 1e25F;
      // A token that reads first does not see what it writes.
      if (reads_before(kind)) p.q(0, written, 0, i) = 1e25F;
    }
    if (by_head(kind)) p.head_log(0, reset, 0) = static_cast<float>(-infinity);
    if (by_row(kind)) fill(p.log.view().slice<1>(reset, 1), static_cast<float>(-infinity));
    for (const Algorithm algorithm : algorithms) {
      for (const Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16}) {
        INFO(text(p.n, kind, algorithm) << ", precision " << static_cast<int>(precision));
        Context context = poisoned(algorithm);
        context.set_precision(precision);
        const Result<float> result = run(p, context);
        CHECK(finite(result.o));
        CHECK(finite(result.state));
      }
    }
  }
  const Tensor<float, 1> nothing(Shape<1>{1});
  Problem<float> p(Kind::none, {.B = 1, .T = 2, .H = 1, .G = 1, .K = 8, .V = 4});
  for (Index i = 0; i < p.n.K; ++i) p.k(0, 0, 0, i) = p.q(0, 1, 0, i) = 1e25F;
  Result<float> result = fresh(p);
  Context context;
  run_all(Form::parallel, p, ConstantDecay<float>(nothing), result, context);
  CHECK(finite(result.o));
}

TEST_CASE("linear_state: gates so strong that products leave the range of normal numbers") {
  for (const Kind kind : decaying) {
    const Sizes n{.B = 1, .T = 131, .H = 2, .G = 2, .K = 33, .V = 16};
    Problem<float> p(kind, n);
    if (by_head(kind)) fill(p.head_log.view(), -12.F);
    if (by_row(kind)) fill(p.log.view(), -12.F);
    const Result<double> expected = literal<double>(p);
    // Now keys and values end: what is left decays to nothing, and to no subnormal number.
    fill(p.k.view().slice<1>(64, n.T - 64), 0);
    for (const Algorithm algorithm : algorithms) {
      INFO(text(n, kind, algorithm));
      const Result<float> got = run(p, algorithm);
      CHECK(relative_error(got.o.view().slice<1>(0, 64), expected.o.view().slice<1>(0, 64)) < 1e-6);
      CHECK(std::all_of(got.state.data(), got.state.data() + got.state.size(),
                        [](float x) { return x == 0; }));
    }
    if (by_head(kind)) fill(p.head_log.view(), -1.F);
    if (by_row(kind)) fill(p.log.view(), -1.F);
    for (const Algorithm algorithm : algorithms) {
      // e^-67 is left, times numbers near one, then e^-83 to e^-90.
      for (const Index T : {Index{131}, Index{150}, Index{160}}) {
        Problem<float> longer(kind, {.B = 1, .T = T, .H = 2, .G = 2, .K = 33, .V = 16});
        fill(longer.k.view().slice<1>(64, T - 64), 0);
        if (by_head(kind)) fill(longer.head_log.view(), -1.F);
        if (by_row(kind)) fill(longer.log.view(), -1.F);
        const Result<float> got = run(longer, algorithm);
        CHECK(std::none_of(got.state.data(), got.state.data() + got.state.size(),
                           [](float x) { return std::fpclassify(x) == FP_SUBNORMAL; }));
      }
    }
  }
}

TEST_CASE("linear_state: what is left of the past keeps its relative accuracy") {
  // Only the state or only token `at` writes; e^-12 a token is left of it, down to e^-84. Positive
  // numbers: no sum cancels.
  for (const Kind kind : {Kind::scalar, Kind::vector, Kind::value}) {
    for (const Index at : {Index{-1}, Index{0}, Index{12}}) {
      const Sizes n{.B = 1, .T = at + 8, .H = 1, .G = 1, .K = 17, .V = 16};
      Problem<float> p(kind, n);
      if (by_head(kind)) fill(p.head_log.view(), -12.F);
      if (by_row(kind)) fill(p.log.view(), -12.F);
      for (Tensor<float, 4>* tensor : {&p.q, &p.k, &p.v, &p.state}) {
        for (Index i = 0; i < tensor->size(); ++i) tensor->data()[i] = std::abs(tensor->data()[i]);
      }
      const Tensor<float, 4> keys = p.k;
      fill(p.k.view(), 0);
      if (at >= 0) {
        fill(p.state.view(), 0);
        copy(keys.view().slice<1>(at, 1), p.k.view().slice<1>(at, 1));
      }
      const Result<double> expected = literal<double>(p);
      for (const Algorithm algorithm : algorithms) {
        const Result<float> got = run(p, algorithm);
        for (Index t = std::max<Index>(at, 0); t < n.T; ++t) {
          INFO(text(n, kind, algorithm) + ", token " + std::to_string(t));
          CHECK(relative_error(got.o.view().slice<1>(t, 1), expected.o.view().slice<1>(t, 1)) <
                2e-6);
        }
      }
    }
  }
}

TEST_CASE("linear_state: any split into prefill pieces and steps agrees") {
  std::mt19937 random(7);
  for (const Kind kind : kinds) {
    const Problem<double> p(kind, {.B = 2, .T = 131, .H = 4, .G = 2, .K = 17, .V = 24},
                            {.divisor = 1, .reset = -50});
    const Result<double> expected = literal<double>(p);
    for (const Algorithm algorithm : algorithms) {
      for (int trial = 0; trial < 6; ++trial) {
        INFO(text(p.n, kind, algorithm));
        Context context = poisoned(algorithm);
        Result<double> got = fresh(p);
        for (Index first = 0; first < p.n.T;) {
          const Index piece = std::min<Index>(static_cast<Index>(random() % 40), p.n.T - first);
          if (piece == 1) {
            run_part(Form::recurrent, p, got.state.view(), got.o.view(), first, 1, context);
          } else {
            run_part(Form::parallel, p, got.state.view(), got.o.view(), first, piece, context);
          }
          first += piece;
        }
        check_within(1e-12, got, expected);
      }
    }
  }
}

TEST_CASE("linear_state: steps have the bits of the recurrence, cuts at blocks change none") {
  for (const Kind kind : kinds) {
    const Problem<float> p(kind, {.B = 1, .T = 150, .H = 2, .G = 1, .K = 24, .V = 40});
    const Result<float> whole = run(p, Algorithm::recurrent);
    Result<float> stepped = fresh(p);
    Context context = poisoned(Algorithm::automatic);
    for (Index t = 0; t < p.n.T; ++t) {
      run_part(Form::recurrent, p, stepped.state.view(), stepped.o.view(), t, 1, context);
    }
    CHECK(stepped == whole);

    for (const Algorithm algorithm :
         {Algorithm::automatic, Algorithm::recurrent, Algorithm::chunked}) {
      Context cutting = poisoned(algorithm);
      Result<float> cut = fresh(p);
      for (Index first = 0; first < p.n.T; first += 64) {
        run_part(Form::parallel, p, cut.state.view(), cut.o.view(), first,
                 std::min<Index>(64, p.n.T - first), cutting);
      }
      const Result<float> uncut = run(p, algorithm);
      CHECK(cut == uncut);
    }
  }
}

TEST_CASE("linear_state: a long segment is the recurrence and cuts at blocks change no bit") {
  constexpr Index T = 1061;
  for (const Kind kind : kinds) {
    const Problem<double> p(kind, {.B = 1, .T = T, .H = 2, .G = 2, .K = 7, .V = 9}, {.divisor = 1});
    const Result<double> expected = literal<double>(p);
    for (const Algorithm algorithm : algorithms) {
      INFO(text(p.n, kind, algorithm));
      Context context = poisoned(algorithm);
      const Result<double> got = run(p, context);
      check_within(1e-12, got, expected);
      Result<double> cut = fresh(p);
      for (Index first = 0; first < T; first += 192) {
        run_part(Form::parallel, p, cut.state.view(), cut.o.view(), first,
                 std::min<Index>(192, T - first), context);
      }
      CHECK(cut == got);
    }
  }
}

TEST_CASE("linear_state: strided operands, and nothing is written beside the outputs") {
  constexpr Index B = 2, T = 37, H = 4, G = 2, K = 17, V = 19;
  for (const Kind kind : kinds) {
    const Problem<float> p(kind, {.B = B, .T = T, .H = H, .G = G, .K = K, .V = V});
    for (const Algorithm algorithm : algorithms) {
      INFO(text(p.n, kind, algorithm));
      const Result<float> expected = run(p, algorithm);
      // One wide row a token, as a fused projection writes it: q, k, v, log decays, o.
      constexpr Index q_at = 5, k_at = q_at + G * K, v_at = k_at + G * K, log_at = v_at + H * V;
      constexpr Index head_log_at = log_at + H * std::max(K, V), o_at = head_log_at + H + 3;
      constexpr Index width = o_at + H * V + 7;
      constexpr float guard = 1234.5F;
      Tensor<float, 2> rows({B * T, width});
      fill(rows.view(), guard);
      const auto columns = [&](Index at, Index count) {
        return rows.view().slice(axis::channel, at, count);
      };
      const auto heads = [&](Index at, Index count, Index size) {
        return columns(at, count * size).split(axis::channel, count, size);
      };
      copy(flat(p.q), heads(q_at, G, K)), copy(flat(p.k), heads(k_at, G, K));
      copy(flat(p.v), heads(v_at, H, V));
      const auto logs = heads(log_at, H, by_value(kind) ? V : K);
      if (by_row(kind)) copy(flat(p.log), logs);
      if (by_head(kind)) copy(flat(p.head_log), columns(head_log_at, H));
      Tensor<float, 4> wide_state({B, H + 1, K + 2, V + 3});
      fill(wide_state.view(), guard);
      const auto state = wide_state.view().slice<1>(1, H).slice<2>(1, K).slice<3>(2, V);
      copy(p.state.view(), state);
      const Tensor<float, 2> rows_before = rows;
      const Tensor<float, 4> state_before = wide_state;

      Context context = poisoned(algorithm);
      const auto o = heads(o_at, H, V);
      const auto go = [&](const auto& decay) {
        linear_state(heads(q_at, G, K), heads(k_at, G, K), heads(v_at, H, V), decay, p.scale, state,
                     o, TestCall(context, B, T));
      };
      with_decay<float>(kind, columns(head_log_at, H), logs, go);
      CHECK(same_bits(o, flat(expected.o)));
      CHECK(same_bits(state, expected.state.view()));
      // Put the outputs back: then nothing else may have changed.
      copy(rows_before.view().slice(axis::channel, o_at, H * V).split(axis::channel, H, V), o);
      copy(state_before.view().slice<1>(1, H).slice<2>(1, K).slice<3>(2, V), state);
      CHECK(same_bits(rows.view(), rows_before.view()));
      CHECK(same_bits(wide_state.view(), state_before.view()));
    }
  }
}

TEST_CASE("linear_state: the same bits for any threads, any batch position, any scratch") {
  for (const Kind kind : kinds) {
    for (const Sizes n : {Sizes{.B = 3, .T = 131, .H = 4, .G = 1, .K = 64, .V = 65},
                          Sizes{.B = 3, .T = 131, .H = 1, .G = 1, .K = 17, .V = 300},
                          Sizes{.B = 3, .T = 1, .H = 8, .G = 8, .K = 128, .V = 128}}) {
      const Problem<float> p(kind, n);
      for (const Algorithm algorithm :
           {Algorithm::automatic, Algorithm::recurrent, Algorithm::chunked}) {
        INFO(text(n, kind, algorithm));
        const Result<float> expected = run(p, algorithm);
        for (const Index workers : {1, 2, 3}) {
          support::ThreadExecutor executor(workers);
          Context context(executor);
          context.set_algorithm(algorithm);
          context.set_poison(true);
          const Result<float> got = run(p, context);
          CHECK(got == expected);
        }
        Context clean;
        clean.set_algorithm(algorithm), clean.set_poison(false);
        Result<float> alone = fresh(p);
        for (Index b = 0; b < n.B; ++b) {
          run_part(Form::parallel, p, alone.state.view().slice<0>(b, 1),
                   alone.o.view().slice<0>(b, 1), 0, n.T, clean, b, 1);
        }
        CHECK(alone == expected);
      }
    }
  }
}

TEST_CASE("linear_state: the future does not touch the past, NaN stays in its batch row") {
  for (const Kind kind : kinds) {
    const Problem<float> p(kind, {.B = 3, .T = 70, .H = 2, .G = 1, .K = 17, .V = 16});
    for (const Algorithm algorithm : algorithms) {
      INFO(text(p.n, kind, algorithm));
      const Result<float> expected = run(p, algorithm);
      Problem<float> later = p;
      constexpr Index from = 37;
      fill(later.q.view().slice<1>(from, 1), 9), fill(later.k.view().slice<1>(from, 1), 9);
      fill(later.v.view().slice<1>(from, 1), 9);
      if (by_head(kind)) fill(later.head_log.view().slice<1>(from, 1), -9);
      if (by_row(kind)) fill(later.log.view().slice<1>(from, 1), -9);
      const Result<float> changed = run(later, algorithm);
      CHECK(same_bits(changed.o.view().slice<1>(0, from), expected.o.view().slice<1>(0, from)));
      CHECK_FALSE(
          same_bits(changed.o.view().slice<1>(from, 1), expected.o.view().slice<1>(from, 1)));

      for (const int poison : {0, 1, 2, 3}) {
        Problem<float> bad = p;
        const float nan = std::numeric_limits<float>::quiet_NaN();
        if (poison == 0) bad.q(1, 3, 0, 4) = nan;
        if (poison == 1) bad.k(1, 3, 0, 4) = nan;
        if (poison == 2) bad.v(1, 3, 1, 4) = nan;
        if (poison == 3 && by_nothing(kind)) continue;
        if (poison == 3) (by_head(kind) ? bad.head_log(1, 3, 1) : bad.log(1, 3, 1, 4)) = nan;
        const Result<float> got = run(bad, algorithm);
        for (const Index b : {0, 2}) {
          CHECK(same_bits(got.o.view().slice<0>(b, 1), expected.o.view().slice<0>(b, 1)));
          CHECK(same_bits(got.state.view().slice<0>(b, 1), expected.state.view().slice<0>(b, 1)));
        }
        // What a token writes is read one token later where the state is read first.
        CHECK(std::isnan(got.o(1, poison > 0 && reads_before(kind) ? 4 : 3, 1, 4)));
      }
    }
  }
}

TEST_CASE("linear_state: decays that are one number are the scalar decay, zero logs are none") {
  for (const Algorithm algorithm : algorithms) {
    const Sizes n{.B = 1, .T = 90, .H = 2, .G = 2, .K = 17, .V = 12};
    const Problem<double> by_head(Kind::scalar, n);
    Problem<double> by_channel(Kind::vector, n), by_column(Kind::value, n);
    const auto copy_inputs = [&](Problem<double>& to) {
      to.q = by_head.q, to.k = by_head.k, to.v = by_head.v, to.state = by_head.state;
    };
    copy_inputs(by_channel), copy_inputs(by_column);
    for (Index t = 0; t < n.T; ++t) {
      for (Index h = 0; h < n.H; ++h) {
        for (Index i = 0; i < n.K; ++i) by_channel.log(0, t, h, i) = by_head.head_log(0, t, h);
        for (Index j = 0; j < n.V; ++j) by_column.log(0, t, h, j) = by_head.head_log(0, t, h);
      }
    }
    CHECK(error(run(by_channel, algorithm).o, run(by_head, algorithm).o) <= 1e-14);
    CHECK(error(run(by_column, algorithm).o, run(by_head, algorithm).o) <= 1e-14);
    Problem<double> none(Kind::none, n), zero = by_head;
    copy_inputs(none);
    fill(zero.head_log.view(), 0);
    CHECK(run(none, algorithm) == run(zero, algorithm));
    CHECK(error(run(none, algorithm).o, run(by_head, algorithm).o) > 0.1);
  }
}

TEST_CASE("linear_state: constant factors are the scalar decay of their logarithms") {
  const double factors[] = {0, 1e-300, 1e-5, 0.3, 0.5, 0.97, 1 - 0x1p-12, 1};
  const Index H = std::size(factors);
  for (const Index T : lengths) {
    for (const Index G : {Index{1}, H}) {
      const Sizes n{.B = 2, .T = T, .H = H, .G = G, .K = 17, .V = 33};
      Problem<double> p(Kind::scalar, n);
      Tensor<double, 1> kept({H});
      for (Index h = 0; h < H; ++h) {
        kept[h] = factors[h];
        fill(p.head_log.view().slice<2>(h, 1), std::log(factors[h]));
      }
      const ConstantDecay<double> decay(kept);
      const auto run_by = [&](const auto& by, Algorithm algorithm, Index piece) {
        Context context = poisoned(algorithm);
        Result<double> result = fresh(p);
        for (Index first = 0; first < T; first += piece) {
          const Index count = std::min(piece, T - first);
          for (Index row = 0; row < n.B; ++row) {
            const auto part = [&](auto& x) {
              return x.view()[row].slice(axis::time, first, count);
            };
            const Segment segments[] = {{row, 0, count, Form::parallel}};
            linear_state(part(p.q), part(p.k), part(p.v), by, p.scale, result.state.view(),
                         part(result.o), Call(context, segments));
          }
        }
        return result;
      };
      const Result<double> expected = literal<double>(p);
      Problem<double> after = p;
      after.kind = Kind::scalar_after;
      const Result<double> expected_after = literal<double>(after);
      for (const Algorithm algorithm : algorithms) {
        INFO(text(n, Kind::scalar, algorithm));
        const Result<double> got = run_by(decay, algorithm, T);
        check_within(1e-12, got, expected);
        const Result<double> cut = run_by(decay, algorithm, 64);
        CHECK(cut == got);
        CHECK(error(run_by(decay, algorithm, 7).o, expected.o) <= 1e-12);
        const ReadBefore<ConstantDecay<double>> read_before{decay};
        CHECK(error(run_by(read_before, algorithm, T).o, expected_after.o) <= 1e-12);
      }
    }
  }
}

TEST_CASE("linear_state: what is left of the past by constant factors keeps its accuracy") {
  // Only the state counts, in positive numbers: γ^n is all there is.
  for (const double factor : {1e-3, 0.1, 0.49, 0.51, 0.9, 1 - 0x1p-12}) {
    const Sizes n{.B = 1, .T = 3 * detail::chunk_length + 5, .H = 1, .G = 1, .K = 9, .V = 16};
    Problem<float> p(Kind::none, n);
    p.scale = 1;
    fill(p.k.view(), 0), fill(p.q.view(), 1), fill(p.state.view(), 1);
    Tensor<float, 1> kept({1});
    kept[0] = static_cast<float>(factor);
    for (const Algorithm algorithm : algorithms) {
      Context context = poisoned(algorithm);
      Result<float> got = fresh(p);
      run_all(Form::parallel, p, ConstantDecay<float>{kept}, got, context);
      for (Index t = 0; t < n.T; ++t) {
        INFO("factor " << factor << ", token " << t << ", algorithm " << int(algorithm));
        const double left = 9 * std::pow(static_cast<double>(kept[0]), double(t + 1));
        if (left < 1e-36) break;
        CHECK(std::abs(static_cast<double>(got.o(0, t, 0, 3)) / left - 1) < 4e-6);
      }
    }
  }
}

TEST_CASE("linear_state: a bonus counts what a token reads of its own") {
  for (const Index T : lengths) {
    const Sizes n{.B = 2, .T = T, .H = 4, .G = 2, .K = 17, .V = 33};
    const Problem<double> p(Kind::vector_after, n, {.divisor = 1, .reset = -50});
    Tensor<double, 2> bonus({n.H, n.K});
    for (Index i = 0; i < bonus.size(); ++i) bonus.data()[i] = std::sin(static_cast<double>(i));
    Result<double> expected = literal<double>(p);
    for (Index b = 0; b < n.B; ++b) {
      for (Index t = 0; t < T; ++t) {
        for (Index h = 0; h < n.H; ++h) {
          double share = 0;
          for (Index i = 0; i < n.K; ++i)
            share += p.q(b, t, h / 2, i) * bonus(h, i) * p.k(b, t, h / 2, i);
          for (Index j = 0; j < n.V; ++j)
            expected.o(b, t, h, j) += p.scale * share * p.v(b, t, h, j);
        }
      }
    }
    const ReadBeforeWithBonus<double> decay{{{flat(p.log)}}, bonus};
    for (const Algorithm algorithm : algorithms) {
      INFO(text(n, p.kind, algorithm));
      Context context = poisoned(algorithm);
      Result<double> got = fresh(p), stepped = fresh(p);
      run_all(Form::parallel, p, decay, got, context);
      check_within(1e-12, got, expected);
      run_all(Form::recurrent, p, decay, stepped, context);
      CHECK(error(stepped.o, expected.o) <= 1e-12);
      const ReadBeforeWithBonus<double> narrow{{{flat(p.log)}}, bonus.view().slice<1>(1, n.K - 1)};
      CHECK_THROWS_AS(run_all(Form::parallel, p, narrow, got, context), ShapeError);
    }
  }
}

TEST_CASE("linear_state: matrix units keep what the precision promises") {
  const bool units = simd::matrix_units();
  for (const Precision precision : {Precision::bf16x3, Precision::bf16}) {
    const double bound = !units ? 1e-6 : precision == Precision::bf16 ? 8e-3 : 2e-5;
    for (const Kind kind : {Kind::none, Kind::scalar, Kind::none_after, Kind::scalar_after}) {
      for (const Sizes n : {Sizes{.B = 1, .T = 200, .H = 4, .G = 1, .K = 128, .V = 64},
                            Sizes{.B = 2, .T = 37, .H = 10, .G = 1, .K = 17, .V = 33},
                            Sizes{.B = 1, .T = 129, .H = 3, .G = 3, .K = 64, .V = 5},
                            Sizes{.B = 1, .T = 300, .H = 1, .G = 1, .K = 33, .V = 200},
                            Sizes{.B = 1, .T = 64, .H = 2, .G = 2, .K = 1, .V = 1}}) {
        for (const double reset : {0.0, -50.0, -infinity}) {
          INFO(text(n, kind, Algorithm::chunked) + ", reset " + std::to_string(reset));
          const Problem<float> p(kind, n, {.divisor = 16, .reset = reset});
          const Result<double> expected = literal<double>(p);
          Context context = poisoned(Algorithm::chunked);
          const Result<float> plain = run(p, context);
          context.set_precision(precision);
          const Result<float> got = run(p, context);
          check_within(bound, got, expected);
          CHECK((got == plain) != units);
          context.set_algorithm(Algorithm::recurrent);
          CHECK(run(p, context) == run(p, Algorithm::recurrent));
        }
      }
    }
    // A decay a channel or value column has no form on matrix units, nor have doubles.
    const Sizes n{.B = 1, .T = 70, .H = 2, .G = 1, .K = 64, .V = 64};
    Context context = poisoned(Algorithm::chunked);
    context.set_precision(precision);
    for (const Kind kind : {Kind::vector, Kind::value}) {
      const Problem<float> by_row(kind, n);
      CHECK(run(by_row, context) == run(by_row, Algorithm::chunked));
    }
    const Problem<double> wide(Kind::scalar, n);
    CHECK(run(wide, context) == run(wide, Algorithm::chunked));
  }
}

TEST_CASE("linear_state: constant factors on matrix units") {
  const float factors[] = {0, 1e-30F, 0.3F, 0.97F, 1 - 0x1p-12F, 1};
  const Sizes n{.B = 1, .T = 300, .H = 6, .G = 2, .K = 40, .V = 48};
  Problem<float> p(Kind::scalar, n);
  Tensor<float, 1> kept({n.H});
  for (Index h = 0; h < n.H; ++h) {
    kept[h] = factors[h];
    fill(p.head_log.view().slice<2>(h, 1), std::log(factors[h]));
  }
  const Result<double> expected = literal<double>(p);
  Context context = poisoned(Algorithm::chunked);
  context.set_precision(Precision::bf16x3);
  Result<float> got = fresh(p);
  run_all(Form::parallel, p, ConstantDecay<float>{kept}, got, context);
  check_within(2e-5, got, expected);
}

TEST_CASE("linear_state: matrix units give the same bits for any threads, batch and cut at 64") {
  for (const Kind kind : {Kind::none, Kind::scalar, Kind::scalar_after}) {
    for (const Sizes n : {Sizes{.B = 3, .T = 331, .H = 10, .G = 1, .K = 64, .V = 65},
                          Sizes{.B = 3, .T = 331, .H = 1, .G = 1, .K = 40, .V = 300}}) {
      const Problem<float> p(kind, n);
      for (const Algorithm algorithm : {Algorithm::automatic, Algorithm::chunked}) {
        INFO(text(n, kind, algorithm));
        Context serial = poisoned(algorithm);
        serial.set_precision(Precision::bf16x3);
        const Result<float> expected = run(p, serial);
        for (const Index workers : {1, 2, 3}) {
          support::ThreadExecutor executor(workers);
          Context context(executor);
          context.set_algorithm(algorithm), context.set_precision(Precision::bf16x3);
          context.set_poison(true);
          const Result<float> got = run(p, context);
          CHECK(got == expected);
        }
        Result<float> alone = fresh(p), cut = fresh(p);
        for (Index b = 0; b < n.B; ++b) {
          run_part(Form::parallel, p, alone.state.view().slice<0>(b, 1),
                   alone.o.view().slice<0>(b, 1), 0, n.T, serial, b, 1);
        }
        CHECK(alone == expected);
        for (Index first = 0; first < n.T; first += 64) {
          run_part(Form::parallel, p, cut.state.view(), cut.o.view(), first,
                   std::min<Index>(64, n.T - first), serial);
        }
        CHECK(cut == expected);
      }
    }
  }
}

TEST_CASE("linear_state: segments keep their bits in any company, rows left out their numbers") {
  using support::company_rows, support::company_tokens, support::row_without_company;
  for (const Kind kind : kinds) {
    for (const auto& [H, G, K, V] : {Shape<4>{2, 1, 40, 24}.extents, {1, 1, 17, 300}}) {
      const Problem<float> p(kind, {.B = 1, .T = company_tokens, .H = H, .G = G, .K = K, .V = V});
      // Rows of the state may lie at any stride.
      Result<float> start = fresh(p);
      start.state = random_tensor<float, 4>({company_rows, H + 1, K, V}, 2);
      const auto run_call = [&](Index first, Index count, Result<float>& result, const Call& call) {
        const auto part = [&](auto& x) { return flat(x).slice(axis::time, first, count); };
        const auto logs = by_row(kind) ? part(p.log) : View<const float, 3>();
        const auto head_logs = by_head(kind) ? part(p.head_log) : View<const float, 2>();
        with_decay<float>(kind, head_logs, logs, [&](const auto& decay) {
          linear_state(part(p.q), part(p.k), part(p.v), decay, p.scale,
                       result.state.view().slice(axis::head, 0, p.n.H), part(result.o), call);
        });
      };
      for (const Precision precision : {Precision::fp32, Precision::bf16x3}) {
        for (const Algorithm algorithm :
             {Algorithm::automatic, Algorithm::recurrent, Algorithm::chunked}) {
          INFO(text(p.n, kind, algorithm) << ", precision " << static_cast<int>(precision));
          const Result<float> got =
              support::check_company(start, run_call, std::equal_to<>(), algorithm, precision);
          CHECK(same_bits(got.state.view()[row_without_company],
                          start.state.view()[row_without_company]));
        }
      }
    }
  }
}

TEST_CASE("linear_state: a lone head is cut in columns and keeps its bits") {
  for (const Kind kind : kinds) {
    // Long enough to be cut, and its first half, which is not.
    const Problem<float> p(kind, {.B = 1, .T = 256, .H = 1, .G = 1, .K = 64, .V = 72});
    for (const Algorithm algorithm : algorithms) {
      INFO(text(p.n, kind, algorithm));
      support::ThreadExecutor executor(2);
      Context context(executor), narrow = poisoned(algorithm);
      context.set_algorithm(algorithm);
      const Result<float> got = run(p, context);
      Result<float> cut = fresh(p);
      for (Index first = 0; first < p.n.T; first += 32) {
        run_part(Form::parallel, p, cut.state.view(), cut.o.view(), first, 32, narrow);
      }
      CHECK(got == cut);
    }
  }
}

TEST_CASE("linear_state: nothing to do leaves everything as it is") {
  for (const Kind kind : kinds) {
    for (const Algorithm algorithm : algorithms) {
      for (const Sizes n : {Sizes{.B = 0, .T = 5, .H = 2, .G = 1, .K = 4, .V = 4},
                            Sizes{.B = 2, .T = 0, .H = 2, .G = 1, .K = 4, .V = 4},
                            Sizes{.B = 2, .T = 5, .H = 2, .G = 1, .K = 4, .V = 0}}) {
        const Problem<float> p(kind, n);
        CHECK(same_bits(run(p, algorithm).state.view(), p.state.view()));
      }
      const Problem<float> keyless(kind, {.B = 1, .T = 5, .H = 1, .G = 1, .K = 0, .V = 4});
      const Result<float> got = run(keyless, algorithm);
      CHECK(std::all_of(got.o.data(), got.o.data() + got.o.size(), [](float x) { return x == 0; }));
    }
  }
}

TEST_CASE("linear_state: a step allocates nothing once the context has grown") {
  for (const Kind kind : kinds) {
    const Problem<float> p(kind, {.B = 2, .T = 1, .H = 4, .G = 2, .K = 33, .V = 17});
    Result<float> result = fresh(p);
    Context context;
    const TestCall call(context, p.n.B, 1, Form::recurrent);
    const auto step = [&] {
      with_decay<float>(kind, flat(p.head_log), flat(p.log), [&](const auto& decay) {
        linear_state(flat(p.q), flat(p.k), flat(p.v), decay, p.scale, result.state.view(),
                     flat(result.o), call);
      });
    };
    step(), step();
    const auto before = support::allocations();
    step();
    CHECK(support::allocations() == before);
  }
}

TEST_CASE("linear_state: operands that do not fit are named") {
  using Catch::Matchers::ContainsSubstring;
  const Problem<float> p(Kind::vector, {.B = 2, .T = 5, .H = 4, .G = 2, .K = 3, .V = 6});
  Result<float> result = fresh(p);
  Context context;
  const VectorDecay<float> decay{flat(p.log)};
  const auto call = [&](View<const float, 3> q, View<const float, 3> k, View<const float, 3> v,
                        const auto& by, View<float, 4> state, View<float, 3> o) {
    linear_state(q, k, v, by, 1, state, o, TestCall(context, 2, 5));
  };
  const auto q = flat(p.q), k = flat(p.k), v = flat(p.v);
  const auto state = result.state.view();
  const auto o = flat(result.o);
  const auto names = [](const char* name) { return ContainsSubstring(name); };
  CHECK_THROWS_WITH(call(q.slice<0>(0, 9), k, v, decay, state, o), names(": q has shape"));
  CHECK_THROWS_WITH(call(q, k.slice<2>(0, 2), v, decay, state, o), names(": k has shape"));
  CHECK_THROWS_WITH(call(q, k, v.slice<0>(0, 5), decay, state, o), names(": v has shape"));
  CHECK_THROWS_WITH(call(q, k, v, decay, state.slice<2>(0, 2), o), names(": state has shape"));
  CHECK_THROWS_WITH(call(q, k, v, VectorDecay<float>{decay.log.slice<1>(0, 2)}, state, o),
                    names("decay: log has shape"));
  CHECK_THROWS_WITH(call(q, k, v, ScalarDecay<float>{decay.log.at<2>(0).slice<0>(0, 2)}, state, o),
                    names("decay: log has shape"));
  CHECK_THROWS_WITH(call(q, k, v, ValueDecay<float>{decay.log}, state, o),
                    names("decay: log has shape [10, 4, 3], expected [10, 4, 6]"));
  CHECK_THROWS_WITH(call(q, k, v.slice<1>(0, 3), decay, state, o.slice<1>(0, 3)),
                    names("3 heads do not divide into 2 groups"));
  const Tensor<float, 3> every_other({10, 4, 12});
  const View<const float, 3> gaps(every_other.data(), {10, 4, 6}, {48, 12, 2});
  CHECK_THROWS_WITH(call(q, k, gaps, decay, state, o),
                    names("the last dimension of v has stride 2"));
  CHECK_THROWS_AS(call(q, k, gaps, decay, state, o), ShapeError);
  CHECK(same_bits(result.state.view(), p.state.view()));
}

TEST_CASE("linear_state: the comparison sees a wrong recurrence") {
  const Problem<double> p(Kind::vector, {.B = 1, .T = 37, .H = 1, .G = 1, .K = 8, .V = 8});
  const Result<double> expected = literal<double>(p);
  Problem<double> wrong = p;
  wrong.log(0, 20, 0, 3) *= 1 + 1e-8;
  CHECK(error(run(wrong, Algorithm::chunked).o, expected.o) > 1e-12);
  wrong = p, wrong.scale *= 1 + 1e-10;
  CHECK(error(run(wrong, Algorithm::recurrent).o, expected.o) > 1e-12);
  wrong = p, wrong.state(0, 0, 2, 2) += 1e-9;
  CHECK(error(run(wrong, Algorithm::chunked).o, expected.o) > 1e-12);
}
