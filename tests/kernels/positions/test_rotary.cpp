#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/positions/rope_scaling.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/kernels/positions/rotary_sections.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

Tensor<Index, 1> positions(const std::vector<Index>& values) {
  Tensor<Index, 1> past({static_cast<Index>(values.size())});
  std::copy(values.begin(), values.end(), past.data());
  return past;
}

/// The rotation of one head written out, angles in long double.
template <class S>
std::vector<double> rotated(const View<const S, 1>& head, Index position, Index rotary_dim,
                            double base, bool interleaved) {
  const Index pairs = rotary_dim / 2;
  std::vector<double> result;
  for (Index i = 0; i < head.extent(0); ++i) result.push_back(static_cast<double>(head[i]));
  for (Index n = 0; n < pairs; ++n) {
    const auto a = static_cast<std::size_t>(interleaved ? 2 * n : n);
    const auto b = static_cast<std::size_t>(interleaved ? 2 * n + 1 : n + pairs);
    const long double angle =
        static_cast<long double>(position) *
        std::pow(static_cast<long double>(base),
                 -2 * static_cast<long double>(n) / static_cast<long double>(rotary_dim));
    const long double x = result[a], y = result[b];
    result[a] = static_cast<double>(x * std::cos(angle) - y * std::sin(angle));
    result[b] = static_cast<double>(x * std::sin(angle) + y * std::cos(angle));
  }
  return result;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("rope turns pairs by position times frequency", "[rope]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  context.set_poison(true);
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const bool interleaved : {false, true}) {
    for (const Index rotary_dim : {0, 2, 6, 16, 34, 64}) {
      for (const Index start : {0, 1, 15, 16, 1000, 1000000}) {
        const Index K = rotary_dim + 3, T = 37, H = 2;
        auto x = random_tensor<S, 4>({2, T, H, K}, static_cast<unsigned>(rotary_dim));
        const Tensor<S, 4> before = x;
        const auto past = positions({start, 3 * start + 5});
        const RotaryFrequencies frequencies(rotary_dim, 10000);
        rope(flat(x), frequencies, past,
             interleaved ? RotaryLayout::interleaved : RotaryLayout::half_split,
             TestCall(context, 2, T));
        // An angle in double is off by its own last bits.
        const double angle_error = 1e-15 * static_cast<double>(3 * start + T);
        double worst = 0;
        for (Index b = 0; b < 2; ++b) {
          for (Index t = 0; t < T; ++t) {
            for (Index h = 0; h < H; ++h) {
              const auto expected = rotated<S>(View<const S, 4>(before)[b][t][h], past(b) + t,
                                               rotary_dim, 10000, interleaved);
              for (Index i = 0; i < K; ++i) {
                const double want = expected[static_cast<std::size_t>(i)];
                worst = std::max(worst, std::abs(static_cast<double>(x(b, t, h, i)) - want));
                if (i >= rotary_dim) CHECK(x(b, t, h, i) == before(b, t, h, i));
              }
            }
          }
        }
        CHECK(worst <= 8 * (epsilon + angle_error));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("rope keeps norms, is nothing at position 0, and scores depend on distance",
                        "[rope]", support::TestScalars) {
  using S = TestType;
  Context context;
  const Index K = 24;
  const double tolerance = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
  const RotaryFrequencies frequencies(K, 10000);
  const auto q = random_tensor<S, 4>({1, 1, 1, K}, 1), k = random_tensor<S, 4>({1, 1, 1, K}, 2);
  const auto turned = [&](Tensor<S, 4> x, Index position) {
    rope(flat(x), frequencies, positions({position}), RotaryLayout::half_split,
         TestCall(context, 1, 1));
    return x;
  };
  const auto dot = [&](const Tensor<S, 4>& a, const Tensor<S, 4>& b) {
    double sum = 0;
    for (Index i = 0; i < K; ++i) {
      sum += static_cast<double>(a.data()[i]) * static_cast<double>(b.data()[i]);
    }
    return sum;
  };
  CHECK(same_bits(turned(q, 0).view(), q.view()));
  for (const Index position : {1, 17, 4000}) {
    const auto a = turned(q, position);
    CHECK_FALSE(same_bits(a.view(), q.view()));
    CHECK(std::abs(dot(a, a) / dot(q, q) - 1) < tolerance);
  }
  const double near = dot(turned(q, 9), turned(k, 4));
  for (const Index shift : {1, 16, 333, 5000}) {
    CHECK(std::abs(dot(turned(q, 9 + shift), turned(k, 4 + shift)) - near) < tolerance * K);
    CHECK(std::abs(dot(turned(q, 10 + shift), turned(k, 4 + shift)) - near) > 1e-3);
  }
}

TEMPLATE_LIST_TEST_CASE("both rope layouts are one rotation of permuted numbers", "[rope]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index pairs : {1, 4, 17, 32}) {
    const Index T = 20, H = 3, K = 2 * pairs + 1;
    auto halves = random_tensor<S, 4>({1, T, H, K}, 3);
    Tensor<S, 4> interleaved = halves;
    const auto from_halves = [&](const Tensor<S, 4>& x) {
      Tensor<S, 4> result = x;
      for (Index t = 0; t < T; ++t) {
        for (Index h = 0; h < H; ++h) {
          for (Index n = 0; n < pairs; ++n) {
            result(0, t, h, 2 * n) = x(0, t, h, n);
            result(0, t, h, 2 * n + 1) = x(0, t, h, n + pairs);
          }
        }
      }
      return result;
    };
    interleaved = from_halves(halves);
    const RotaryFrequencies frequencies(2 * pairs, 500);
    const TestCall call(context, 1, T);
    rope(flat(halves), frequencies, positions({7}), RotaryLayout::half_split, call);
    rope(flat(interleaved), frequencies, positions({7}), RotaryLayout::interleaved, call);
    CHECK(same_bits(from_halves(halves).view(), interleaved.view()));
  }
}

TEMPLATE_LIST_TEST_CASE("rope bits depend on positions alone", "[rope]", support::TestScalars) {
  using S = TestType;
  const Index B = 3, T = 50, H = 2, K = 20;
  const RotaryFrequencies frequencies(18, 10000);
  const auto x = random_tensor<S, 4>({B, T, H, K}, 4);
  const auto past = positions({0, 5, 40});
  Tensor<S, 4> whole = x;
  Context context;
  rope(flat(whole), frequencies, past, RotaryLayout::half_split, TestCall(context, B, T));

  for (const Index workers : {1, 2, 3}) {
    support::ThreadExecutor executor(workers);
    Context threaded(executor);
    Tensor<S, 4> again = x;
    rope(flat(again), frequencies, past, RotaryLayout::half_split, TestCall(threaded, B, T));
    CHECK(same_bits(again.view(), whole.view()));
    // Rows of other lengths in another order.
    Tensor<S, 3> mixed({78, H, K});
    const std::vector<Segment> segments{
        {2, 0, T, Form::parallel}, {0, T, 1, Form::recurrent}, {1, T + 1, 27, Form::parallel}};
    const auto of = [&](const Segment& segment) {
      return mixed.view().slice(axis::time, segment.first, segment.count);
    };
    const auto of_row = [](const Tensor<S, 4>& from, const Segment& segment) {
      return from.view()[segment.row].slice(axis::time, 0, segment.count);
    };
    for (const Segment& segment : segments) copy(of_row(x, segment), of(segment));
    rope(mixed.view(), frequencies, past, RotaryLayout::half_split, Call(threaded, segments));
    for (const Segment& segment : segments) {
      CHECK(same_bits(of(segment), of_row(whole, segment)));
    }
  }
  for (Index b = 0; b < B; ++b) {  // one row alone, one token at a time, in a wider buffer
    Tensor<S, 4> row({1, T, H, K + 3});
    const auto window = row.view().template slice<3>(2, K);
    copy(x.view().template slice<0>(b, 1), window);
    for (Index t = 0; t < T; ++t) {
      rope(window[0].slice(axis::time, t, 1), frequencies, positions({past(b) + t}),
           RotaryLayout::half_split, TestCall(context, 1, 1));
    }
    CHECK(same_bits(window, whole.view().template slice<0>(b, 1)));
    for (const Index i : {Index{0}, Index{1}, K + 2}) CHECK(row(0, 0, 0, i) == 0);
  }
  Tensor<S, 4> from_start = x;
  rope(flat(from_start), frequencies, {}, RotaryLayout::half_split, TestCall(context, B, T));
  CHECK(same_bits(from_start[0], whole[0]));
}

TEST_CASE("rope says what does not fit", "[rope]") {
  Context context;
  Tensor<float, 4> x({2, 3, 1, 6});
  const auto turn = [&](Index rotary_dim, const std::vector<Index>& past) {
    rope(flat(x), RotaryFrequencies(rotary_dim, 10), positions(past), RotaryLayout::half_split,
         TestCall(context, 2, 3));
  };
  CHECK_NOTHROW(turn(6, {0, 0}));
  CHECK_THROWS_AS(turn(8, {0, 0}), ShapeError);
  CHECK_THROWS_AS(turn(6, {0}), ShapeError);
  CHECK_THROWS_AS(RotaryFrequencies(5, 10), ConfigError);
  CHECK_THROWS_AS(RotaryFrequencies(4, 0), ConfigError);
  Tensor<float, 4> empty({0, 3, 1, 6});
  CHECK_NOTHROW(rope(flat(empty), RotaryFrequencies(6, 10), positions({}), RotaryLayout::half_split,
                     TestCall(context, 0, 3)));
}

TEST_CASE("frequencies of longer contexts", "[rope]") {
  const Index d = 64;
  const double base = 10000, factor = 4;
  const auto angles = [&](RopeScaling kind, double by) {
    return RotaryFrequencies(d, base, {.kind = kind, .factor = by, .original_length = 2048})
        .angles();
  };
  const auto plain = RotaryFrequencies(d, base).angles();
  const auto near = [](double a, double b) { return std::abs(a - b) <= 1e-14 * std::abs(b); };
  for (const RopeScaling kind : {RopeScaling::none, RopeScaling::linear, RopeScaling::ntk,
                                 RopeScaling::yarn, RopeScaling::llama3}) {
    const auto unscaled = angles(kind, 1), scaled = angles(kind, factor);
    for (std::size_t n = 0; n < plain.size(); ++n) {
      CHECK(near(unscaled[n], plain[n]));
      CHECK(scaled[n] <= plain[n] * (1 + 1e-14));
      CHECK(scaled[n] * factor >= plain[n] * (1 - 1e-14));
    }
    // The fastest pair is kept, the slowest divided, but by what divides all or none.
    CHECK(near(scaled[0], kind == RopeScaling::linear ? plain[0] / factor : plain[0]));
    CHECK(near(scaled[31], kind == RopeScaling::none ? plain[31] : plain[31] / factor));
  }
  const auto changed_base = RotaryFrequencies(d, base * std::pow(factor, 64.0 / 62)).angles();
  const auto ntk = angles(RopeScaling::ntk, factor);
  for (std::size_t n = 0; n < plain.size(); ++n) CHECK(near(ntk[n], changed_base[n]));

  // YaRN multiplies cos and sin; rotation keeps norms otherwise.
  Context context;
  auto x = random_tensor<double, 4>({1, 40, 1, d}, 1);
  const auto before = x;
  rope(flat(x),
       RotaryFrequencies(d, base,
                         {.kind = RopeScaling::yarn, .factor = factor, .original_length = 2048}),
       positions({5}), RotaryLayout::half_split, TestCall(context, 1, 40));
  for (Index t = 0; t < 40; ++t) {
    double norm = 0, norm_before = 0;
    for (Index i = 0; i < d; ++i) {
      norm += x(0, t, 0, i) * x(0, t, 0, i), norm_before += before(0, t, 0, i) * before(0, t, 0, i);
    }
    CHECK(std::abs(std::sqrt(norm / norm_before) - (0.1 * std::log(factor) + 1)) < 1e-13);
  }
}

TEST_CASE("positions stop at the last", "[rope]") {
  Context context;
  const RotaryFrequencies frequencies(6, 100);
  auto x = random_tensor<double, 4>({1, 50, 1, 6}, 2);
  for (Index t = 1; t < 50; ++t) copy(x[0][0], x[0][t]);
  auto stopped = x;
  const TestCall call(context, 1, 50);
  rope(flat(x), frequencies, positions({3}), RotaryLayout::half_split, call);
  rope(flat(stopped), frequencies, positions({3}), RotaryLayout::half_split, call, {.last = 20});
  for (Index t = 0; t < 50; ++t) CHECK(same_bits(stopped[0][t], x[0][std::min<Index>(t, 17)]));
}

TEST_CASE("rules of positions", "[rope]") {
  CHECK(PositionRule{}(7) == 7);
  CHECK(PositionRule{.divide = 4}(7) == 1);
  CHECK(PositionRule{.divide = 4}(-1) == -1);
  CHECK(PositionRule{.modulo = 5}(-1) == 4);
  CHECK(PositionRule{.shift = -9, .last = 3}(7) == -2);
  // Self-Extend beyond a window of 12 in groups of 4: far keys look as far as groups say.
  const PositionRule far_query{.divide = 4, .shift = 12 - 3}, far_key{.divide = 4};
  CHECK(far_query(40) - far_key(8) == 10 + 9 - 2);
  // Dual Chunk of chunks of 10 that see 13: never further than a context of 20.
  const PositionRule key{.modulo = 10}, same{.modulo = 10};
  const PositionRule next{.modulo = 10, .shift = 10, .last = 13}, later{.modulo = 1, .shift = 19};
  CHECK(same(37) - key(34) == 3);
  CHECK(next(31) - key(28) == 3);
  CHECK(next(37) - key(28) == 5);
  CHECK(later(37) - key(12) == 17);

  Context context;
  const RotaryFrequencies frequencies(6, 100);
  const auto before = random_tensor<double, 4>({1, 50, 1, 6}, 2);
  const PositionRule rule{.divide = 3, .modulo = 7, .shift = 20, .last = 25};
  auto ruled = before, given = before;
  const TestCall call(context, 1, 50);
  rope(flat(ruled), frequencies, positions({3}), RotaryLayout::half_split, call, rule);
  Tensor<Index, 2> at({50, 1});
  for (Index t = 0; t < 50; ++t) at(t, 0) = std::min<Index>((3 + t) / 3 % 7 + 20, 25);
  rope_at(flat(given), frequencies, at, RotaryLayout::half_split, call);
  CHECK(same_bits(given.view(), ruled.view()));
}

TEMPLATE_LIST_TEST_CASE("given positions turn as counted ones, backwards too", "[rope]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  context.set_poison(true);
  const Index B = 2, T = 40, H = 2, K = 12;
  const RotaryFrequencies frequencies(K, 1000);
  const RotarySections sections({1, 3, 2}, SectionOrder::chunked, K / 2);
  const auto x = random_tensor<S, 4>({B, T, H, K}, 5);
  const TestCall call(context, B, T);
  for (const auto layout : {RotaryLayout::half_split, RotaryLayout::interleaved}) {
    auto counted = x;
    rope(flat(counted), frequencies, positions({4, 100}), layout, call);
    for (const Index axes : {1, 3}) {
      Tensor<Index, 2> given({B * T, axes});
      for (Index i = 0; i < B * T; ++i) {
        for (Index axis = 0; axis < axes; ++axis) given(i, axis) = (i < T ? 4 : 100) + i % T;
      }
      auto turned = x;
      rope_at(flat(turned), frequencies, given, layout, call, sections);
      CHECK(same_bits(turned.view(), counted.view()));
      // Turned to -p it is where it was.
      for (Index i = 0; i < given.size(); ++i) given.data()[i] = -given.data()[i];
      rope_at(flat(turned), frequencies, given, layout, call, sections);
      CHECK(support::relative_error(turned.view(), x.view()) <
            8 * static_cast<double>(std::numeric_limits<S>::epsilon()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("one angle turns all pairs", "[rope]", support::TestScalars) {
  using S = TestType;
  Context context;
  context.set_poison(true);
  const Index B = 2, T = 40, H = 2, K = 12;
  const RotaryFrequencies alike(std::vector<double>(5, 0.3));
  const auto x = random_tensor<S, 4>({B, T, H, K}, 6);
  const TestCall call(context, B, T);
  for (const auto layout : {RotaryLayout::half_split, RotaryLayout::interleaved}) {
    auto expected = x, turned = x;
    rope(flat(expected), alike, positions({4, 100}), layout, call);
    rope_by_one_angle(flat(turned), 5, positions({4, 100}), layout, call,
                      [](Index position) { return 0.3 * static_cast<double>(position); });
    CHECK(support::relative_error(turned.view(), expected.view()) <
          8 * static_cast<double>(std::numeric_limits<S>::epsilon()));
  }
}

TEST_CASE("sections of positions are published ones", "[rope]") {
  // transformers 4.57.6 in float64: apply_multimodal_rotary_pos_emb of Qwen2-VL with sections
  // [3, 2, 3], Qwen3VLTextRotaryEmbedding with [4, 2, 2], rope_theta 1000, of sin(0.7 i), at
  const std::vector<std::vector<Index>> published{{0, 0, 0}, {3, 1, 20}, {3, 2, 5}, {70, 70, 70}};
  // Of the tokens whose axes differ:
  const std::vector<std::vector<double>> chunked{
      {1.094632071630762, 0.7443515264234901, 0.3365301558920759, 0.6639103852183331,
       0.9685501041672225, 0.5541979838241853, 0.2073043286741271, -0.3952508675173856,
       0.7405031344457271, -0.8831083722746118, -0.5036871117466094, 0.1004445831935226,
       0.712943201083283, 1.180566573163016, 0.8653891095936908, 0.2686159790295938},
      {0.3553469162416118, 0.1243598207905681, -0.3777763332870814, -0.4401286338727359,
       0.1035872550259144, 0.6870272772969973, 0.9743988345698633, 0.8154577133925205,
       -0.3242977589167617, -0.9779592115209428, -1.27133083104273, -1.04519200050528,
       -0.5723122208967084, 0.1300377487822074, 0.7338531458307909, 1.005981189377521}};
  const std::vector<std::vector<double>> interleaved{
      {1.094632071630762, -0.1646533113332577, -0.2746132347324132, 0.6414493367012043,
       0.9685501041672225, 0.5541979838241853, 0.2889613115591375, -0.3841038588731174,
       0.7405031344457271, -1.143166164272494, 0.539945204325575, 0.198516655067682,
       0.712943201083283, 1.180566573163016, 0.8416500199681662, 0.2843273079780649},
      {0.3553469162416118, -0.2868220470288749, 0.08854965128195147, -0.3605867965232834,
       0.1035872550259144, 0.6870272772969973, 0.9825905538382004, 0.8202196388934354,
       -0.3242977589167617, -0.943187519936461, -1.323312510032863, -1.075228670771007,
       -0.5723122208967084, 0.1300377487822074, 0.7228480697662507, 1.002102379842645}};
  Context context;
  const Index K = 16, T = 4;
  Tensor<Index, 2> given({T, 3});
  for (Index t = 0; t < T; ++t) {
    for (Index axis = 0; axis < 3; ++axis) {
      given(t, axis) = published[static_cast<std::size_t>(t)][static_cast<std::size_t>(axis)];
    }
  }
  const auto check = [&](const RotarySections& sections, const auto& expected) {
    Tensor<double, 3> x({T, 1, K});
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::sin(0.7 * static_cast<double>(i));
    rope_at(x.view(), RotaryFrequencies(K, 1000), given, RotaryLayout::half_split,
            TestCall(context, 1, T), sections);
    for (const Index t : {1, 2}) {
      for (Index i = 0; i < K; ++i) {
        const double want = expected[static_cast<std::size_t>(t - 1)][static_cast<std::size_t>(i)];
        CHECK(std::abs(x(t, 0, i) - want) < 1e-14);
      }
    }
  };
  check(RotarySections({3, 2, 3}, SectionOrder::chunked, 8), chunked);
  check(RotarySections({4, 2, 2}, SectionOrder::interleaved, 8), interleaved);
}

TEST_CASE("sections and given positions say what does not fit", "[rope]") {
  const auto make = [](std::vector<Index> counts, SectionOrder order) {
    return RotarySections(counts, order, 8);
  };
  CHECK_NOTHROW(make({3, 2, 3}, SectionOrder::chunked));
  CHECK_THROWS_AS(make({3, 2, 2}, SectionOrder::chunked), ConfigError);
  CHECK_THROWS_AS(make({}, SectionOrder::chunked), ConfigError);
  CHECK_THROWS_AS(make({4, 1, 1, 1, 1}, SectionOrder::chunked), ConfigError);
  CHECK_THROWS_AS(make({-1, 9}, SectionOrder::chunked), ConfigError);
  CHECK_NOTHROW(make({3, 3, 2}, SectionOrder::interleaved));
  CHECK_THROWS_AS(make({3, 1, 4}, SectionOrder::interleaved), ConfigError);
  Context context;
  Tensor<float, 3> x({5, 1, 16});
  const RotaryFrequencies frequencies(16, 10);
  const auto turn = [&](Index tokens, Index axes, const RotarySections& sections) {
    Tensor<Index, 2> given({tokens, axes});
    rope_at(x.view(), frequencies, given, RotaryLayout::half_split, TestCall(context, 1, 5),
            sections);
  };
  CHECK_NOTHROW(turn(5, 1, {}));
  CHECK_NOTHROW(turn(5, 3, make({3, 2, 3}, SectionOrder::chunked)));
  CHECK_THROWS_AS(turn(4, 1, {}), ShapeError);
  CHECK_THROWS_AS(turn(5, 3, {}), ShapeError);
  CHECK_THROWS_AS(turn(5, 2, make({3, 2, 3}, SectionOrder::chunked)), ShapeError);
  CHECK_THROWS_AS(turn(5, 3, RotarySections({1, 1, 1}, SectionOrder::chunked, 3)), ShapeError);
}
