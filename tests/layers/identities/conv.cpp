// Identities between the forms of long convolutions.

#include <catch2/catch_test_macros.hpp>

#include "seqmix/layers/conv/hyena.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

TEST_CASE("online steps, transforms and direct sums are one convolution") {
  for (const StepForm form : {StepForm::amortized, StepForm::spread}) {
    for (const Index T : {200, 333}) {
      const HyenaConfig config{
          .d_model = 11, .order = 3, .max_length = T, .filter_width = 6, .step_form = form};
      const Hyena<double> layer(config,
                                random_weights<HyenaDefinition<double>::Weights>(config, 1));
      const auto x = random_tensor<double, 3>({2, T, 11}, 2);
      Context context;
      Tensor<double, 3> direct(x.shape()), y(x.shape());
      context.set_algorithm(Algorithm::recurrent);
      layer.forward(x, direct, context);
      context.set_algorithm(Algorithm::chunked);
      layer.forward(x, y, context);
      CHECK(relative_error(y.view(), direct.view()) < 1e-13);
      context.set_algorithm(Algorithm::automatic);
      for (const Index first : {0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129}) {
        auto state = layer.make_state(2, T);
        layer.prefill(x.view().slice<1>(0, first), state, y.view().slice<1>(0, first), context);
        for (Index t = first; t < T; ++t) {
          layer.step(x.view().at<1>(t), state, y.view().at<1>(t), context);
        }
        CAPTURE(static_cast<int>(form), T, first);
        CHECK(relative_error(y.view(), direct.view()) < 1e-13);
      }
    }
  }
}
