#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "seqmix/kernels/token_shift.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::random_tensor;
using support::same_bits;

TEMPLATE_TEST_CASE("token_shift takes each token from the one before it", "[token_shift]", float,
                   double) {
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
        token_shift(x, history, difference.view(), context);
        CHECK(same_bits(difference.view(), expected.view()));
        CHECK(same_bits(history.view(), last.view()));
      }
      // Pieces are the whole.
      Context context;
      Tensor<S, 3> difference(x.shape()), history = first;
      for (Index t = 0; t < T; ++t) {
        token_shift(x.view().template slice<1>(t, 1), history,
                    difference.view().template slice<1>(t, 1), context);
      }
      CHECK(same_bits(difference.view(), expected.view()));
      CHECK(same_bits(history.view(), last.view()));
    }
  }
}

TEST_CASE("token_shift of nothing is nothing, and wrong shapes throw", "[token_shift]") {
  Context context;
  const auto x = random_tensor<float, 3>({2, 3, 4}, 1);
  Tensor<float, 3> y(x.shape()), history({2, 1, 4}), short_history({1, 1, 4}), nothing({2, 0, 4});
  CHECK_NOTHROW(token_shift(nothing, history, nothing.view(), context));
  CHECK_NOTHROW(token_shift(x, history, y.view(), context));
  CHECK_THROWS_AS(token_shift(x, short_history, y.view(), context), ShapeError);
  CHECK_THROWS_AS(token_shift(nothing, history, y.view(), context), ShapeError);
}
