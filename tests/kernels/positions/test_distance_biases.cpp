#include <array>
#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/positions/distance_biases.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"

using namespace seqmix;
using support::random_tensor;

namespace {

/// What a head adds for a query and a key as lane `lane` of a register of queries (step 1) or keys
/// (step -1).
template <class S>
double bias_of(const auto& biases, Index head, Index query, Index key, Index step, Index lane) {
  const Index origin = key / 64 * 64;
  const auto number = [&](Index position) { return static_cast<S>(position - origin); };
  const simd::Batch<S> here = simd::counting_from<S>(-lane);
  const bool queries = step > 0;
  const Pairs<S> pairs{origin, queries ? here + simd::Batch<S>(number(query)) : number(query),
                       queries ? simd::Batch<S>(number(key)) : here + simd::Batch<S>(number(key)),
                       query - key - step * lane, step};
  const simd::Batch<S> result = [&] {
    if constexpr (requires { biases.narrowed(head, Span{}, Span{}); }) {
      const Span of_queries{query - lane, query - lane + simd::lanes<S>};
      const Span of_keys{key - lane, key - lane + simd::lanes<S>};
      return queries ? biases.narrowed(head, of_queries, {key - 3, key + 5}).of(pairs)
                     : biases.narrowed(head, {query, query + 1}, of_keys).of(pairs);
    } else {
      return biases.of(head, pairs);
    }
  }();
  std::array<S, static_cast<std::size_t>(simd::lanes<S>)> lanes;
  simd::store<S>(lanes.data(), result);
  return static_cast<double>(lanes[static_cast<std::size_t>(lane)]);
}

/// The same in every way that kernels ask, which must agree in every bit.
template <class S>
double bias_at(const auto& biases, Index head, Index query, Index key) {
  const double bias = bias_of<S>(biases, head, query, key, 1, 0);
  for (const Index step : {1, -1}) {
    for (Index lane = 0; lane < simd::lanes<S>; ++lane) {
      CHECK(bias_of<S>(biases, head, query, key, step, lane) == bias);
    }
  }
  if constexpr (requires { biases.template rising<S>(head, query - key); }) {
    S first[simd::lanes<S>];
    simd::store<S>(first, biases.template rising<S>(head, query - key));
    CHECK(static_cast<double>(first[0]) == bias);
  }
  return bias;
}

template <class S>
auto near(double expected) {
  return Catch::Approx(expected).epsilon(8 * std::numeric_limits<S>::epsilon()).margin(1e-14);
}

constexpr std::array<Index, 6> distances{0, 1, 2, 7, 100, 1000};

/// Biases of heads at `distances`.
template <class S>
void check_heads(const auto& biases, const std::vector<std::array<double, 6>>& expected) {
  for (std::size_t h = 0; h < expected.size(); ++h) {
    for (std::size_t i = 0; i < distances.size(); ++i) {
      INFO("head " << h << " distance " << distances[i]);
      const auto head = static_cast<Index>(h);
      CHECK(bias_at<S>(biases, head, 1000, 1000 - distances[i]) == near<S>(expected[h][i]));
      CHECK(bias_at<S>(biases, head, 1000 - distances[i], 1000) == near<S>(expected[h][i]));
    }
  }
}

/// Where a distance's bucket differs from that of the one before, from -4096 to 4096, as
/// transformers 4.57.6 T5Attention._relative_position_bucket has them in float.
struct Buckets {
  Index buckets, max_distance;
  bool both_directions;
  std::vector<Index> begins;
};
const std::vector<Buckets> published_buckets{
    {32, 128, false, {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16,
                      19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113}},
    {32, 128, true, {-90, -63, -45, -31, -22, -15, -11, -7, -6, -5, -4, -3, -2, -1, 0,
                     1,   2,   3,   4,   5,   6,   7,   8,  12, 16, 23, 32, 46, 64, 91}},
    {30, 100, false, {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                      18, 20, 22, 25, 29, 33, 37, 42, 47, 54, 61, 69, 78, 89}},
    {30, 100, true, {-71, -51, -36, -26, -18, -13, -9, -6, -5, -4, -3, -2, -1, 0,
                     1,   2,   3,   4,   5,   6,   7,  10, 14, 19, 27, 37, 52, 72}},
    {50, 333, false, {1,  2,  3,  4,  5,   6,   7,   8,   9,   10,  11,  12,  13,  14,  15, 16, 17,
                      18, 19, 20, 21, 22,  23,  24,  25,  28,  31,  35,  38,  42,  47,  52, 58, 64,
                      71, 79, 87, 97, 107, 119, 132, 146, 162, 179, 199, 221, 245, 271, 301}},
    {50, 333, true, {-257, -199, -154, -119, -92, -71, -55, -43, -33, -25, -20, -15,
                     -11,  -10,  -9,   -8,   -7,  -6,  -5,  -4,  -3,  -2,  -1,  0,
                     1,    2,    3,    4,    5,   6,   7,   8,   9,   10,  11,  12,
                     16,   21,   26,   34,   44,  56,  72,  93,  120, 155, 200, 258}}};

}  // namespace

TEST_CASE("T5's buckets are those of transformers", "[distance_biases]") {
  for (const Buckets& published : published_buckets) {
    const auto [buckets, max_distance, both_directions, begins] = published;
    INFO(buckets << " buckets to " << max_distance << (both_directions ? " both ways" : ""));
    // Keys behind the query have the second half, the nearest one its second row.
    Index expected = both_directions ? 2 * (buckets / 2) - 1 : 0;
    std::size_t next = 0;
    bool same = true;
    for (Index distance = -4096; distance <= 4096; ++distance) {
      if (next < begins.size() && distance == begins[next]) {
        ++next;
        expected = distance == 0 ? 0 : expected + (distance < 0 ? -1 : 1);
      }
      same &= t5_bucket(distance, both_directions, buckets, max_distance) == expected;
    }
    CHECK(next == begins.size());
    CHECK(same);
  }
}

TEMPLATE_LIST_TEST_CASE("tables of distances", "[distance_biases]", support::TestScalars) {
  using S = TestType;
  const auto numbers = random_tensor<S, 2>({32, 3}, 1);
  for (const bool both_directions : {false, true}) {
    const auto table = t5_biases<S>(numbers, both_directions, 128);
    for (const Index distance :
         {-5000, -129, -100, -1, 0, 1, 15, 16, 17, 100, 127, 128, 129, 5000}) {
      const Index bucket = t5_bucket(distance, both_directions, 32, 128);
      CHECK(bias_at<S>(table, 2, 6000 + distance, 6000) == static_cast<double>(numbers(bucket, 2)));
    }
  }
  const auto of_keys = random_tensor<S, 2>({7, 3}, 2);  // from 3 before the query to 3 behind it
  const auto table = relative_biases<S>(of_keys);
  for (const Index ahead : {-50, -4, -3, -2, 0, 1, 3, 4, 50}) {
    const Index row = std::clamp<Index>(ahead, -3, 3) + 3;
    CHECK(bias_at<S>(table, 1, 60, 60 + ahead) == static_cast<double>(of_keys(row, 1)));
  }
}

TEST_CASE("slopes of ALiBi", "[distance_biases]") {
  const double root = std::sqrt(0.5);
  CHECK(alibi_slopes(8) ==
        std::vector<double>{0.5, 0.25, 1. / 8, 1. / 16, 1. / 32, 1. / 64, 1. / 128, 1. / 256});
  // transformers 4.57.6 build_mpt_alibi_tensor, 6 heads with an alibi_bias_max of 4; bloom's
  // build_alibi_tensor, 6 heads.
  const std::vector<double> mpt{0.5, 0.25, 0.125, 0.0625, root, root / 2};
  const std::vector<double> six = alibi_slopes(6, 4);
  for (std::size_t h = 0; h < 6; ++h) CHECK(six[h] == near<double>(mpt[h]));
  CHECK(alibi_slopes(6) == std::vector<double>{0.25, 0.0625, 1. / 64, 1. / 256, 0.5, 0.125});
}

TEMPLATE_LIST_TEST_CASE("Falcon's rounded biases", "[distance_biases]", support::TestScalars) {
  using S = TestType;
  // transformers 4.57.6 falcon build_alibi_tensor, 6 heads, at the keys below.
  constexpr std::array<Index, 6> keys{1, 3, 257, 259, 771, 1027};
  const std::array<std::array<double, 6>, 3> expected{{{0.25, 0.75, 64, 65, 193, 256},
                                                       {0.015625, 0.046875, 4, 4.0625, 12.0625, 16},
                                                       {0.5, 1.5, 128, 130, 386, 512}}};
  const FalconBiases biases(alibi_slopes(6), 0.125);
  for (std::size_t h = 0; h < 3; ++h) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto head = static_cast<Index>(2 * h);
      CHECK(bias_at<S>(biases, head, 2000, keys[i]) == 0.125 * expected[h][i]);
    }
  }
}

// Expected numbers: tests/golden/cases/biases.py.
TEMPLATE_LIST_TEST_CASE("biases that are formulas of the distance", "[distance_biases]",
                        support::TestScalars) {
  using S = TestType;
  check_heads<S>(LinearBiases(alibi_slopes(2)),
                 {{0, -0.0625, -0.125, -0.4375, -6.25, -62.5},
                  {0, -0.00390625, -0.0078125, -0.02734375, -0.390625, -3.90625}});
  check_heads<S>(KerpleLogBiases({0.01, 0.5, 1.7, 3}, {0.3, 2, 0.01, 0.02}),
                 {{0, -0.0026236426446749105, -0.004700036292457356, -0.011314021114911007,
                   -0.03433987204485146, -0.057071102647488756},
                  {0, -0.5493061443340549, -0.8047189562170501, -1.354025100551105,
                   -2.651652454029538, -3.8007011672918667},
                  {0, -0.016915562450385755, -0.03366446640350554, -0.11501970240548527,
                   -1.178350206951907, -4.07642196375723},
                  {0, -0.05940788188853919, -0.117662139459844, -0.3930847872192126,
                   -3.295836866004329, -9.13356731317027}});
  check_heads<S>(KerplePowerBiases({0.01, 0.5, 1.7, 2}, {0.3, 2, 0.01, 0.02}),
                 {{0, -0.3, -0.30208666501701564, -0.30589489915693774, -0.3141385644152699,
                   -0.3214557915712819},
                  {0, -2, -2.8284271247461903, -5.291502622129181, -20, -63.245553203367585},
                  {0, -0.01, -0.03249009585424942, -0.2733170143985905, -25.1188643150958,
                   -1258.9254117941668},
                  {0, -0.02, -0.08, -0.98, -200, -20000}});
  check_heads<S>(InverseSquareBiases{},
                 {{0, -1.3862943611198906, -2.1972245773362196, -4.1588830833596715,
                   -9.23024103368252, -13.81750955863044}});
  check_heads<S>(LogSquareBiases{}, {{0, -0.4804530139182014, -1.206948960812582,
                                      -4.324077125263812, -21.299337384969135, -47.7308926007109}});
  check_heads<S>(sandwich_biases<S>(4, 10, 1001),
                 {{0, -0.23627722199822765, -0.7336297382169599, -0.40836909092909135,
                   -2.0080777353365584, -1.568845522364644},
                  {0, -0.11813861099911382, -0.36681486910847994, -0.20418454546454567,
                   -1.0040388676682792, -0.784422761182322}});
}

TEMPLATE_LIST_TEST_CASE("FIRE before and beyond its initial length", "[distance_biases]",
                        support::TestScalars) {
  using S = TestType;
  Tensor<S, 1> weight({5}), bias({5}), out_bias({2});
  Tensor<S, 2> out_weight({2, 5});
  const std::array<double, 5> w{1.5, -2, 0.7, 3, 0}, b{-0.4, 0.9, 0.2, -2.4, 0.3};
  const std::array<std::array<double, 5>, 2> out{{{0.5, -1, 2, 0.25, 1}, {1, 1, -1, -3, 0.5}}};
  for (Index u = 0; u < 5; ++u) {
    const auto at = static_cast<std::size_t>(u);
    weight(u) = static_cast<S>(w[at]), bias(u) = static_cast<S>(b[at]);
    for (Index h = 0; h < 2; ++h) {
      out_weight(h, u) = static_cast<S>(out[static_cast<std::size_t>(h)][at]);
    }
  }
  out_bias(0) = S(0.1), out_bias(1) = S(-0.2);
  const FireBiases<S> fire({weight, bias, out_weight, out_bias}, 0.1, -0.5 * 40, 1e-6);
  const auto check = [&](Index query, const std::array<std::array<double, 4>, 2>& expected) {
    const std::array<Index, 4> keys{0, query / 2, query - 1, query};
    for (std::size_t i = 0; i < 4; ++i) {
      INFO("query " << query << " key " << keys[i]);
      CHECK(bias_at<S>(fire, 0, query, keys[i]) == near<S>(expected[0][i]).margin(1e-6));
      CHECK(bias_at<S>(fire, 1, query, keys[i]) == near<S>(expected[1][i]).margin(1e-6));
    }
  };
  // Expected numbers: tests/golden/cases/biases.py.
  check(3, {{{0.7119676945387412, 0.46425067809890197, 0.19496695031567332, -0.1},
             {0.005202124925117263, 0.20191857915675432, 0.4157615394552006, 0.65}}});
  check(20, {{{2.8999973603086455, 1.9564977354411839, 0.19496695031567332, -0.1},
              {-1.6499925360451368, -0.1452566565800247, 0.4157615394552006, 0.65}}});
  check(21, {{{2.899997436811009, 2.0099000391344677, 0.18641834907774488, -0.1},
              {-1.6499927523621634, -0.12538603194996542, 0.42255013455590845, 0.65}}});
  check(100, {{{2.899998790606569, 2.2065260630914043, 0.035141213158703305, -0.1},
               {-1.649996580335817, -0.05222286024505904, 0.5426819777857357, 0.65}}});
}
