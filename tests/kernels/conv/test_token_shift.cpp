#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "seqmix/kernels/conv/token_shift.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

TEMPLATE_LIST_TEST_CASE("token_shift takes each token from the one before it", "[token_shift]",
                        support::TestScalars) {
  using S = TestType;
  for (const Index T : {1, 2, 9, 40}) {
    for (const Index D : {1, 5, 16, 517}) {
      const Index B = 3;
      CAPTURE(T, D);
      const auto x = random_tensor<S, 3>({B, T, D}, 1), first = random_tensor<S, 3>({B, 1, D}, 2);
      Tensor<S, 3> expected(x.shape()), last({B, 1, D});
      for (Index b = 0; b < B; ++b) {
        for (Index t = 0; t < T; ++t) {
          for (Index d = 0; d < D; ++d) {
            expected(b, t, d) = (t == 0 ? first(b, 0, d) : x(b, t - 1, d)) - x(b, t, d);
          }
        }
        copy(x.view()[b][T - 1], last.view()[b][0]);
      }
      for (const int workers : {1, 3}) {
        support::ThreadExecutor executor(workers);
        Context context(executor);
        Tensor<S, 3> difference(x.shape()), history = first;
        fill(difference.view(), std::numeric_limits<S>::quiet_NaN());
        token_shift(flat(x), history, flat(difference), TestCall(context, B, T));
        CHECK(same_bits(difference.view(), expected.view()));
        CHECK(same_bits(history.view(), last.view()));
      }
      // Pieces are the whole.
      Context context;
      Tensor<S, 3> difference(x.shape()), history = first;
      for (Index t = 0; t < T; ++t) {
        token_shift(x.view().template at<1>(t), history, difference.view().template at<1>(t),
                    TestCall(context, B, 1));
      }
      CHECK(same_bits(difference.view(), expected.view()));
      CHECK(same_bits(history.view(), last.view()));
    }
  }
}

TEST_CASE("shift_tokens gives each segment the tokens before its own", "[token_shift]") {
  Context context;
  const auto x = random_tensor<float, 2>({7, 5}, 1);
  const auto before = random_tensor<float, 3>({3, 1, 5}, 2);
  const TestCall call(
      context, {{2, 0, 4, Form::parallel}, {1, 4, 0, Form::parallel}, {0, 4, 3, Form::parallel}});
  for (const bool remembers : {false, true}) {
    Tensor<float, 2> y(x.shape());
    Tensor<float, 3> history = before;
    shift_tokens(x, remembers ? history.view() : View<float, 3>{}, y.view(), call);
    for (Index i = 0; i < 5; ++i) {
      for (Index t = 0; t < 7; ++t) {
        const bool begins = t == 0 || t == 4;
        const float start = remembers ? before(t == 0 ? 2 : 0, 0, i) : 0;
        CHECK(y(t, i) == (begins ? start : x(t - 1, i)));
      }
      CHECK(history(2, 0, i) == (remembers ? x(3, i) : before(2, 0, i)));
      CHECK(history(1, 0, i) == before(1, 0, i));
    }
  }
}

TEST_CASE("segments of token_shift keep their bits in any company", "[token_shift]") {
  struct Result {
    Tensor<float, 2> difference;
    Tensor<float, 3> history;
  };
  const auto same = [](const Result& a, const Result& b) {
    return same_bits(a.difference.view(), b.difference.view()) &&
           same_bits(a.history.view(), b.history.view());
  };
  for (const Index D : {5, 517}) {
    const auto x = random_tensor<float, 2>({support::company_tokens, D}, 1);
    const auto before = random_tensor<float, 3>({support::company_rows, 1, D}, 2);
    const auto run = [&](Index first, Index count, Result& result, const Call& call) {
      token_shift(x.view().slice(axis::time, first, count), result.history,
                  result.difference.view().slice(axis::time, first, count), call);
    };
    const Result result =
        support::check_company(Result{Tensor<float, 2>(x.shape()), before}, run, same);
    CHECK(same_bits(result.history.view()[support::row_without_company],
                    before.view()[support::row_without_company]));
  }
}

TEST_CASE("token_shift of nothing is nothing, and wrong shapes throw", "[token_shift]") {
  Context context;
  const auto x = random_tensor<float, 3>({2, 3, 4}, 1);
  Tensor<float, 3> y(x.shape()), history({2, 1, 4}), narrow_history({2, 1, 3}), nothing({2, 0, 4});
  const TestCall call(context, 2, 3), no_call(context);
  CHECK_NOTHROW(token_shift(flat(nothing), history, flat(nothing), no_call));
  CHECK_NOTHROW(token_shift(flat(x), history, flat(y), call));
  CHECK_THROWS_AS(token_shift(flat(x), narrow_history, flat(y), call), ShapeError);
  CHECK_THROWS_AS(token_shift(flat(nothing), history, flat(y), call), ShapeError);
}
