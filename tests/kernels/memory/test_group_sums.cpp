#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "seqmix/kernels/memory/group_sums.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

template <class S>
struct Case {
  Index group;
  Tensor<S, 3> q, k, v;  // [B, T, K], [B, T, V]
  struct Result {
    Tensor<S, 3> o, memory, open;
    Tensor<Index, 1> past;
  };

  Case(Index size, Index B, Index T, Index K, Index V)
      : group(size),
        q(random_tensor<S, 3>({B, T, K}, 1)),
        k(random_tensor<S, 3>({B, T, K}, 2)),
        v(random_tensor<S, 3>({B, T, V}, 3)) {}
  /// o is not zero: what tokens read is added.
  Result fresh() const {
    const Shape<3> sums{q.extent(0), q.extent(2), v.extent(2)};
    return {random_tensor<S, 3>(v.shape(), 4), Tensor<S, 3>(sums), Tensor<S, 3>(sums),
            Tensor<Index, 1>({q.extent(0)})};
  }
  Result whole(Context& context) const {
    Result r = fresh();
    add_earlier_groups(flat(q), flat(k), flat(v), r.past, group, 0.3, r.memory.view(),
                       r.open.view(), flat(r.o), TestCall(context, q.extent(0), q.extent(1)));
    return r;
  }
  /// Tokens [first, first + count) of row 0.
  void run(Result& r, Index first, Index count, const Call& call) const {
    const auto part = [&](auto& x) { return x.view()[0].slice(axis::time, first, count); };
    add_earlier_groups(part(q), part(k), part(v), r.past, group, 0.3, r.memory.view(),
                       r.open.view(), part(r.o), call);
  }
  /// o of a token t that reads the tokens of which `sees(t, j)`, weighed by `scale`.
  Tensor<double, 3> expected(double scale, auto&& sees) const {
    const Tensor<S, 3> before = fresh().o;
    Tensor<double, 3> o(v.shape());
    for (Index b = 0; b < q.extent(0); ++b) {
      for (Index t = 0; t < q.extent(1); ++t) {
        for (Index e = 0; e < v.extent(2); ++e) o(b, t, e) = before(b, t, e);
        for (Index j = 0; j < q.extent(1); ++j) {
          if (!sees(t, j)) continue;
          double product = 0;
          for (Index i = 0; i < q.extent(2); ++i) {
            product += static_cast<double>(q(b, t, i)) * static_cast<double>(k(b, j, i));
          }
          for (Index e = 0; e < v.extent(2); ++e) {
            o(b, t, e) += scale * product * static_cast<double>(v(b, j, e));
          }
        }
      }
    }
    return o;
  }
};

bool same(const auto& a, const auto& b) {
  return same_bits(a.o.view(), b.o.view()) && same_bits(a.memory.view(), b.memory.view()) &&
         same_bits(a.open.view(), b.open.view());
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("tokens read the outer products of groups that ended, or of their own",
                        "[group_sums]", support::TestScalars) {
  using S = TestType;
  Context context = support::poisoned();
  const double bound = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index group : {1, 5, 16, 64}) {
    for (const Index V : {1, 7, 67, 600}) {
      const Index T = 71;
      const Case<S> c(group, 2, T, 9, V);
      CAPTURE(group, V);
      const auto earlier = [&](Index t, Index j) { return j / group < t / group; };
      CHECK(relative_error(c.whole(context).o.view(), c.expected(0.3, earlier).view()) < bound);
      const auto own = [&](Index t, Index j) { return j / group == t / group; };
      auto o = c.fresh().o;
      add_own_groups(flat(c.q), flat(c.k), flat(c.v), group, flat(o), TestCall(context, 2, T));
      CHECK(relative_error(o.view(), c.expected(1.0 / 71, own).view()) < bound);
      o = c.fresh().o;
      add_own_groups(flat(c.q), flat(c.k), flat(c.v), 0, flat(o), TestCall(context, 2, T));
      const auto all = [](Index, Index) { return true; };
      CHECK(relative_error(o.view(), c.expected(1.0 / 71, all).view()) < bound);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("add_earlier_groups has the same bits for any cut and threads",
                        "[group_sums]", support::TestScalars) {
  using S = TestType;
  Context context;
  const Case<S> c(24, 1, 150, 17, 1100);
  const auto expected = c.whole(context);
  for (const Index step : {1, 7}) {
    auto pieces = c.fresh();
    for (Index t = 0; t < 150; t += step) {
      const Index count = std::min(step, 150 - t);
      c.run(pieces, t, count, TestCall(context, {{0, 0, count, Form::parallel}}));
      pieces.past(0) += count;
    }
    CHECK(same(pieces, expected));
  }
  for (const int workers : {2, 3}) {
    support::ThreadExecutor executor(workers);
    Context threaded(executor);
    CHECK(same(c.whole(threaded), expected));
  }
}

TEST_CASE("segments of add_earlier_groups keep their bits in any company", "[group_sums]") {
  const Case<float> c(5, 1, support::company_tokens, 3, 11);
  using Result = Case<float>::Result;
  Result fresh = c.fresh();
  fresh.memory = random_tensor<float, 3>({support::company_rows, 3, 11}, 5);
  fresh.open = random_tensor<float, 3>({support::company_rows, 3, 11}, 6);
  fresh.past = Tensor<Index, 1>({support::company_rows});
  for (Index row = 0; row < support::company_rows; ++row) fresh.past(row) = row;
  const Result got = support::check_company(
      fresh,
      [&](Index first, Index count, Result& r, const Call& call) { c.run(r, first, count, call); },
      [](const Result& a, const Result& b) { return same(a, b); });
  CHECK(same_bits(got.open.view()[support::row_without_company],
                  fresh.open.view()[support::row_without_company]));
}
