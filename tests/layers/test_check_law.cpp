#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "seqmix/testing/check_law.hpp"
#include "seqmix/testing/random_weights.hpp"
#include "support/layer_case.hpp"

// What `check_law` says of a lawful layer, and of the same layer with one fault at a time.

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;

/// `lost_row`: a state with several rows forgets the last one. `form`: the parallel form has
/// another factor. `leak`: a token of the segment before it in the call gets into the first one.
/// `unwritten`: the last token of a long segment has no output. `threads`: the number of workers
/// gets into the numbers. `order`: a segment that is not the first writes no state. `place`: x is
/// read after y has been written. `both`: both forms are wrong, as a twin alone can see.
enum class Fault { none, lost_row, form, leak, unwritten, threads, order, place, both };

struct LeakyConfig {
  Index d_model = 0;
  static void visit(auto& self, auto&& field) { field("d_model", self.d_model); }
};

/// h_t = a ⊙ h_{t-1} + x_t,  y_t = h_t.
template <Fault fault>
struct LeakyDefinition {
  using Scalar = double;
  using Config = LeakyConfig;
  static constexpr Traits traits{.name = "leaky"};

  struct Weights {
    Parameter<Scalar, 1> decay;
    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("decay", self.decay, {c.d_model}, init::uniform(0.5, 0.99));
    }
  };
  struct State {
    Tensor<Scalar, 2> h;  // [B, D]
    static void visit(auto& self, auto&& member) { member("h", self.h); }
  };

  Config c;
  Weights w;

  State make_state(Index batch, Index, Memory memory) const {
    return {.h = {{batch, c.d_model}, memory}};
  }
  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    for (const Segment& segment : call.segments()) {
      const Index first = segment.first, last = first + segment.count;
      for (Index d = 0; d < c.d_model; ++d) {
        Scalar h = state.h(segment.row, d), before = 0;
        if (fault == Fault::leak && first > 0) h += 1e-9 * x(first - 1, d);
        for (Index t = first; t < last; ++t) {
          h = w.decay[d] * h + x(t, d);
          if (fault == Fault::form && segment.form == Form::parallel) h *= 1 + 1e-9;
          if (fault == Fault::threads && call.context().workers() > 2) h *= 1 + 1e-15;
          if (fault == Fault::both) h *= 1 + 1e-9;
          if (fault == Fault::unwritten && segment.count > 70 && t + 1 == last) continue;
          if (fault == Fault::place && t > first) h += 1e-9 * (x(t - 1, d) - before);
          before = x(t, d);
          y(t, d) = h;
        }
        const bool lost =
            (fault == Fault::lost_row && segment.row > 0 && segment.row + 1 == state.h.extent(0)) ||
            (fault == Fault::order && first > 0 && segment.count == 7);
        if (!lost) state.h(segment.row, d) = h;
      }
    }
  }
};

/// y_t = mean of all x: sees ahead, hence has no state.
struct MeanDefinition {
  using Scalar = double;
  using Config = LeakyConfig;
  static constexpr Traits traits{.name = "mean"};
  struct Weights {
    static void visit(auto&, const Config&, auto&&) {}
  };
  Config c;
  Weights w;
  void run(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call) const {
    for (const Segment& segment : call.segments()) {
      for (Index d = 0; d < c.d_model; ++d) {
        double sum = 0;
        for (Index i = 0; i < segment.count; ++i) sum += x(segment.first + i, d);
        for (Index i = 0; i < segment.count; ++i) {
          y(segment.first + i, d) = sum / static_cast<double>(segment.count);
        }
      }
    }
  }
};

const testing::LawTwin<double> twin = [](const Tensor<double, 3>& x) {
  const auto decay =
      testing::random_weights<LeakyDefinition<Fault::none>::Weights>(LeakyConfig{5}, 1).decay;
  Tensor<double, 3> y(x.shape());
  for (Index b = 0; b < x.extent(0); ++b) {
    for (Index d = 0; d < x.extent(2); ++d) {
      for (Index t = 0; t < x.extent(1); ++t) {
        y(b, t, d) = x(b, t, d) + (t > 0 ? decay[d] * y(b, t - 1, d) : 0);
      }
    }
  }
  return y;
};

template <Fault fault>
std::vector<std::string> failures() {
  using Definition = LeakyDefinition<fault>;
  const LeakyConfig config{5};
  const Mixer<Definition> layer(config,
                                testing::random_weights<typename Definition::Weights>(config, 1));
  return testing::check_law(layer, {.tokens = 270}, twin);
}
/// All sentences, each a line.
template <Fault fault>
std::string text() {
  std::string result;
  for (const std::string& failure : failures<fault>()) result += failure + "\n";
  INFO(result);
  CHECK(!result.empty());
  return result;
}

}  // namespace

TEST_CASE("a lawful layer has no failures") {
  CHECK(failures<Fault::none>() == std::vector<std::string>{});
  CHECK(testing::check_law(Mixer<MeanDefinition>({3}, {})) == std::vector<std::string>{});
}

TEST_CASE("check_law finds a lost row of the state") {
  CHECK_THAT(text<Fault::lost_row>(),
             ContainsSubstring("step: y first differs at token 1, channel 0, row 3: got ") &&
                 ContainsSubstring("; relative error ") && ContainsSubstring(", bound 1e-12\n") &&
                 ContainsSubstring("prefills and steps in random pieces: y first differs at ") &&
                 ContainsSubstring(", row 3: got "));
}

TEST_CASE("check_law finds forms that differ") {
  const std::string sentences = text<Fault::form>();
  CHECK_THAT(sentences, ContainsSubstring("step: y first differs at token 0, channel 0, row 0") &&
                            ContainsSubstring("prefill: state member h is after the last token "
                                              "not what steps leave; relative error "));
  CHECK_THAT(sentences, ContainsSubstring("forward: y against the twin's first differs"));
  CHECK_THAT(sentences, !ContainsSubstring("other bits"));  // all company is the same
}

TEST_CASE("check_law finds a token that leaks into another row") {
  const std::string sentences = text<Fault::leak>();
  CHECK_THAT(sentences,
             ContainsSubstring("forward of a batch against each row alone: other bits: y first "
                               "differs at token 0, channel 0, row 1: got ") &&
                 ContainsSubstring("forward_documents against each document alone: other bits") &&
                 ContainsSubstring("advance in random company against each segment alone: other "
                                   "bits") &&
                 ContainsSubstring("advance in random company on 3 threads against"));
}

TEST_CASE("check_law finds outputs that are not written") {
  CHECK(text<Fault::unwritten>() ==
        "forward: y is not finite, or not written, at token 127, channel 0, row 2\n");
}

TEST_CASE("check_law finds what threads, company and memory change") {
  CHECK_THAT(text<Fault::threads>(), ContainsSubstring("forward on 3 threads: other bits: y ") &&
                                         ContainsSubstring("step on 3 threads: other bits: y "));
  CHECK_THAT(text<Fault::order>(),
             ContainsSubstring("against each segment alone: state member h has other bits"));
  CHECK_THAT(text<Fault::place>(), ContainsSubstring("forward with y = x: other bits: y first "
                                                     "differs at token 2, channel 0, row 0"));
}

TEST_CASE("check_law finds by a twin what both forms get wrong") {
  const std::vector<std::string> found = failures<Fault::both>();
  REQUIRE(found.size() == 1);
  CHECK_THAT(found.front(), ContainsSubstring("forward: y against the twin's first differs at "
                                              "token 0, channel 0, row 0: got "));
}

TEST_CASE("check_law finds that every layer is lawful") {
  support::for_each_layer<double>([](const support::LayerCase<double>& layer) {
    INFO(layer.text());
    CHECK(testing::check_law(layer.mixer(), {.rows = 3, .tokens = 270, .trials = 2}) ==
          std::vector<std::string>{});
  });
}

}  // namespace seqmix
