#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numbers>
#include <utility>

#include "reference/content_biases.hpp"
#include "reference/distance_biases.hpp"
#include "reference/twin.hpp"

namespace reference {

/// A setting of softmax attention that a config need not name.
template <class S>
double number_or(const Input<S>& in, const char* field, double otherwise) {
  return in.config.value(field, otherwise);
}
template <class S>
bool flag_or(const Input<S>& in, const char* field, bool otherwise) {
  return in.config.value(field, otherwise);
}
template <class S>
std::string text_or(const Input<S>& in, const char* field, const char* otherwise) {
  return in.config.value(field, std::string(otherwise));
}

/// The same input with the fields of all parts of the config side by side, but for content's, and
/// the kind of its merge under that name.
template <class S>
Input<S> with_flat_config(const Input<S>& in) {
  Input<S> result = in;
  for (const auto& [key, value] : in.config.items()) {
    if (!value.is_object() || key == "content") continue;
    result.config.erase(key);
    for (const auto& [name, field] : value.items()) {
      result.config[key == "merge" && name == "kind" ? "merge" : name] = field;
    }
  }
  return result;
}

/// The angle of pair n of `rotary / 2` and the factor of its cos and sin, wavelengths not rounded.
/// Peng et al. 2023, arXiv:2309.00071, section 3; Llama team 2024, arXiv:2407.21783; Ding et al.
/// 2024, arXiv:2402.13753, eq. 1.
template <class S>
std::pair<double, double> unrounded_rotary_pair(const Input<S>& in, Index n) {
  const std::string kind = text_or(in, "rope_scaling", "none");
  const double d = in.number("rotary_dim"), base = in.number("rope_theta");
  const double s = number_or(in, "rope_factor", 1), L = number_or(in, "rope_original_length", 0);
  const double i = static_cast<double>(n), two_pi = 2 * std::numbers::pi;
  const double width = flag_or(in, "rope_closed", false) ? std::max(d - 2, 2.0) : d;
  const double theta = std::pow(base, -2 * i / width);
  const double given = number_or(in, "rope_attention_factor", 0);
  const bool by_call = flag_or(in, "rope_by_call", false);
  const double length = by_call ? static_cast<double>(in.T()) : number_or(in, "rope_length", 0);
  const auto entry = [&](const char* table) {
    return in.config.at(table).at(static_cast<std::size_t>(n)).template get<double>();
  };
  if (kind == "table") return {entry("rope_angles"), 1};
  if (kind == "longrope") {
    const double factor = entry(length > L ? "rope_long_factor" : "rope_short_factor");
    return {theta / factor, given > 0 ? given : std::sqrt(std::log(s * L) / std::log(L))};
  }
  if (kind == "dynamic") {
    const double more = length > L ? s * length / L - s + 1 : 1;
    return {std::pow(base * std::pow(more, d / (d - 2)), -2 * i / d), 1};
  }
  if (kind == "linear") return {theta / s, 1};
  if (kind == "ntk") return {std::pow(base * std::pow(s, d / (d - 2)), -2 * i / d), 1};
  if (kind == "llama3") {
    const double low = number_or(in, "rope_low_freq_factor", 1);
    const double high = number_or(in, "rope_high_freq_factor", 4);
    const double wavelength = two_pi / theta;
    if (wavelength < L / high) return {theta, 1};
    if (wavelength > L / low) return {theta / s, 1};
    const double smooth = (L / wavelength - low) / (high - low);
    return {(1 - smooth) * theta / s + smooth * theta, 1};
  }
  if (kind == "yarn") {
    const auto bound = [&](double turns) {
      return d * std::log(L / (turns * two_pi)) / (2 * std::log(base));
    };
    const bool whole = flag_or(in, "rope_truncate", true);
    double low = bound(number_or(in, "rope_beta_fast", 32));
    double high = bound(number_or(in, "rope_beta_slow", 1));
    low = std::max(whole ? std::floor(low) : low, 0.0);
    high = std::min(whole ? std::ceil(high) : high, d - 1);
    if (low == high) high += 0.001;
    const double ramp = std::min(std::max((i - low) / (high - low), 0.0), 1.0);
    const auto growth = [&](double times) { return 1 + times * std::log(s) / 10; };
    const double times = number_or(in, "rope_mscale", 0);
    const double inferred =
        times > 0 ? growth(times) / growth(number_or(in, "rope_mscale_all_dim", 0)) : growth(1);
    return {theta / s * ramp + theta * (1 - ramp), given > 0 ? given : inferred};
  }
  return {theta, 1};
}

/// The same with wavelengths rounded where the config says so. Wang et al. 2024, arXiv:2403.00071.
template <class S>
std::pair<double, double> rotary_pair(const Input<S>& in, Index n) {
  auto [theta, factor] = unrounded_rotary_pair(in, n);
  const double two_pi = 2 * std::numbers::pi;
  if (flag_or(in, "rope_resonance", false)) theta = two_pi / std::nearbyint(two_pi / theta);
  return {theta, factor};
}

/// Where a token is: on one axis, or on each of three.
using Place = std::vector<Index>;

/// Where token t of row b is turned to: where it stands in the stream, or where the positions say
/// that come beside x.
template <class S>
Place place_of(const Input<S>& in, Index b, Index t) {
  const auto given = static_cast<Index>(number_or(in, "given", 0));
  if (given == 0) return {t};
  Place place;
  for (Index axis = 0; axis < given; ++axis) {
    place.push_back(static_cast<Index>(in.input("positions")(b, t, axis)));
  }
  return place;
}

/// The axis that turns pair n: of three the first has the first pairs, the next the pairs behind
/// them (Qwen2-VL); or axes 1 and 2 have the pairs 1, 4, 7, ... and 2, 5, 8, ..., as many as are
/// theirs, the first one the others (Qwen3-VL).
template <class S>
std::size_t axis_of_pair(const Input<S>& in, Index n) {
  const auto count = [&](std::size_t axis) {
    return in.config.at("rope_sections").at(axis).template get<Index>();
  };
  if (in.text("rope_section_order") == "chunked") {
    return n < count(0) ? 0 : n < count(0) + count(1) ? 1 : 2;
  }
  const auto axis = static_cast<std::size_t>(n % 3);
  return axis > 0 && n / 3 < count(axis) ? axis : 0;
}

/// Rotates each head of one token to its place. Su et al. 2021, arXiv:2104.09864, eq. 34.
template <class S>
void rotate(const Input<S>& in, std::vector<S>& heads, const Place& at) {
  const Index K = in.size("head_dim"), rotary = in.size("rotary_dim");
  const auto offset = static_cast<Index>(number_or(in, "rotary_offset", 0));
  const bool interleaved = in.flag("rope_interleaved");
  for (Index i = 0; i < rotary / 2; ++i) {
    const auto [theta, factor] = rotary_pair(in, i);
    const Index t = at.size() > 1 ? at[axis_of_pair(in, i)] : at[0];
    const double angle = static_cast<double>(t) * theta;
    const S cosine = static_cast<S>(factor * std::cos(angle));
    const S sine = static_cast<S>(factor * std::sin(angle));
    for (Index first = offset; first < static_cast<Index>(heads.size()); first += K) {
      S& a = heads[static_cast<std::size_t>(first + (interleaved ? 2 * i : i))];
      S& b = heads[static_cast<std::size_t>(first + (interleaved ? 2 * i + 1 : i + rotary / 2))];
      const S turned = a * cosine - b * sine;
      b = a * sine + b * cosine;
      a = turned;
    }
  }
}

/// Multiplies the pairs of each head of one token by the power t of xPos. Sun et al. 2022,
/// arXiv:2212.10554, algorithm 1.
template <class S>
void grow_by_position(const Input<S>& in, std::vector<S>& heads, Index t) {
  const double tokens = number_or(in, "rope_xpos", 0);
  const Index K = in.size("head_dim"), rotary = in.size("rotary_dim");
  const auto offset = static_cast<Index>(number_or(in, "rotary_offset", 0));
  if (tokens == 0) return;
  for (Index first = offset; first < static_cast<Index>(heads.size()); first += K) {
    for (Index i = 0; i < rotary; ++i) {
      const Index n = in.flag("rope_interleaved") ? i / 2 : i % (rotary / 2);
      const double zeta = (static_cast<double>(2 * n) / static_cast<double>(rotary) + 0.4) / 1.4;
      heads[static_cast<std::size_t>(first + i)] *=
          static_cast<S>(std::pow(zeta, static_cast<double>(t) / tokens));
    }
  }
}

/// Numbers of a value head.
template <class S>
Index value_width(const Input<S>& in) {
  const Index V = in.size("value_dim");
  return V > 0 ? V : in.size("head_dim");
}

/// Heads of keys and of values, and those of both that query head h reads.
template <class S>
struct HeadCounts {
  Index H, G, keys, values;

  explicit HeadCounts(const Input<S>& in)
      : H(in.size("n_heads")),
        G(in.size("n_kv_heads")),
        keys(in.size("n_key_heads") > 0 ? in.size("n_key_heads") : G),
        values(in.size("n_value_heads") > 0 ? in.size("n_value_heads") : G) {}
  Index key_of(Index h) const { return h / (H / G) % keys; }
  Index value_of(Index h) const { return h / (H / G) % values; }
};

/// Normalises queries or keys, `x` of one token: RMSNorm, LayerNorm or their length, each head or
/// all of them.
template <class S>
void normalise(const Input<S>& in, const std::string& name, std::vector<S>& x) {
  const std::string kind = in.text("qk_norm_kind"), weights = in.text("qk_norm_weight");
  const bool whole = in.text("qk_norm") == "projection";
  const std::size_t width = whole ? x.size() : static_cast<std::size_t>(in.size("head_dim"));
  const S eps = static_cast<S>(in.number("qk_norm_eps")), count = static_cast<S>(width);
  for (std::size_t first = 0; first < x.size(); first += width) {
    S mean = 0, square = 0;
    for (std::size_t i = 0; i < width; ++i) mean += x[first + i] / count;
    if (kind != "layer") mean = 0;
    for (std::size_t i = 0; i < width; ++i) {
      square += (x[first + i] - mean) * (x[first + i] - mean);
    }
    const S length =
        kind == "l2" ? std::max(std::sqrt(square), eps) : std::sqrt(square / count + eps);
    for (std::size_t i = 0; i < width; ++i) {
      S& number = x[first + i];
      number = (number - mean) / length;
      if (weights == "none") continue;
      const std::size_t at = weights == "by_head" ? first + i : i;
      number *= in.weight(name + ".weight").numbers[at];
      if (in.flag("qk_norm_bias")) number += in.weight(name + ".bias").numbers[at];
    }
  }
}

/// The queries, keys and values of one token before rotation.
template <class S>
struct TokenHeads {
  std::vector<S> q, k, v;

  TokenHeads(const Input<S>& in, Index b, Index t)
      : TokenHeads(in, convolved(in, b, t, "q"), convolved(in, b, t, "k"),
                   in.flag("values_are_keys") ? std::vector<S>() : convolved(in, b, t, "v")) {}
  /// Of what was projected; v is empty where values are keys.
  TokenHeads(const Input<S>& in, std::vector<S> queries, std::vector<S> keys, std::vector<S> values)
      : q(std::move(queries)), k(std::move(keys)), v(values.empty() ? k : std::move(values)) {
    if (in.flag("value_norm")) normalise_values(in);
    if (in.flag("qk_norm_rotated")) return;
    normalise_if_asked(in, "q_norm", q), normalise_if_asked(in, "k_norm", k);
  }
  static void normalise_if_asked(const Input<S>& in, const char* name, std::vector<S>& x) {
    if (in.text("qk_norm") != "none") normalise<S>(in, name, x);
  }
  /// "q", "k" or "v" of x before any convolution.
  static std::vector<S> of(const Input<S>& in, const std::string& name, const std::vector<S>& x) {
    const bool biased = in.flag((name + "_bias").c_str());
    const Array<S>* const bias = biased ? &in.weight(name + "_proj.bias") : nullptr;
    std::vector<S> numbers = linear<S>(in.weight(name + "_proj.weight"), bias, x);
    if (const S bound = static_cast<S>(in.number("qkv_clip")); bound > 0) {
      for (S& number : numbers) number = std::min(std::max(number, -bound), bound);
    }
    return numbers;
  }
  /// The same of token t, zeros before the first one.
  static std::vector<S> projected(const Input<S>& in, Index b, Index t, const std::string& name) {
    if (t >= 0) return of(in, name, token(in.x, b, t));
    return std::vector<S>(static_cast<std::size_t>(in.weight(name + "_proj.weight").shape[0]));
  }

 private:
  /// So et al. 2021, arXiv:2109.08668, section 4.
  static std::vector<S> convolved(const Input<S>& in, Index b, Index t, const std::string& name) {
    const Index taps = in.size("conv_kernel");
    std::vector<S> numbers = projected(in, b, t, name);
    if (taps == 0) return numbers;
    const Array<S>& weight = in.weight(name + "_conv1d.weight");
    std::vector<S> sums(numbers.size());
    if (in.flag("conv_bias")) sums = in.weight(name + "_conv1d.bias").numbers;
    for (Index back = 0; back < taps && back <= t; ++back) {
      if (back > 0) numbers = projected(in, b, t - back, name);
      for (std::size_t i = 0; i < numbers.size(); ++i) {
        sums[i] += weight(static_cast<Index>(i), 0, taps - 1 - back) * numbers[i];
      }
    }
    for (S& sum : sums) sum = in.flag("conv_silu") ? silu(sum) : sum;
    return sums;
  }
  void normalise_values(const Input<S>& in) {
    const auto width = static_cast<std::size_t>(value_width(in));
    for (std::size_t first = 0; first < v.size(); first += width) {
      S square = 0;
      for (std::size_t i = 0; i < width; ++i) square += v[first + i] * v[first + i];
      const S mean = square / static_cast<S>(width);
      const S length = std::sqrt(mean + static_cast<S>(in.number("value_norm_eps")));
      for (std::size_t i = 0; i < width; ++i) v[first + i] /= length;
    }
  }
};

/// Rotates the heads of one token, "q_norm" or "k_norm", to its place.
template <class S>
void place(const Input<S>& in, const char* name, std::vector<S>& heads, const Place& at) {
  rotate(in, heads, at);
  if (in.flag("qk_norm_rotated")) TokenHeads<S>::normalise_if_asked(in, name, heads);
}

/// What a query at position t is multiplied by. Nakanishi 2025, arXiv:2501.19399; Chiang & Cholak
/// 2022, arXiv:2202.12172.
template <class S>
S temperature(const Input<S>& in, Index t) {
  const std::string kind = in.text("temperature");
  if (kind == "none") return 1;
  const Index length = in.size("temperature_length");
  if (kind == "logarithmic") {
    return static_cast<S>(std::max(
        1.0, std::log(static_cast<double>(t + 1)) / std::log(static_cast<double>(length))));
  }
  const double rate = in.number("temperature_rate");
  const Index steps = (t + in.size("temperature_offset")) / length;
  return static_cast<S>(1 + rate * std::log(1.0 + static_cast<double>(steps)));
}

/// What the first and second half of the outputs of all heads become together. Ye et al. 2024,
/// arXiv:2410.05258, eq. 1-3.
template <class S>
std::vector<S> difference_of_halves(const Input<S>& in, const std::vector<S>& o) {
  const auto exp_of_product = [&](const char* a, const char* b) {
    S product = 0;
    for (Index i = 0; i < in.size("head_dim"); ++i) product += in.weight(a)(i) * in.weight(b)(i);
    return std::exp(product);
  };
  const S start = static_cast<S>(in.number("lambda_init"));
  const S lambda =
      exp_of_product("lambda_q1", "lambda_k1") - exp_of_product("lambda_q2", "lambda_k2") + start;
  const std::size_t n = o.size() / 2, width = static_cast<std::size_t>(value_width(in));
  std::vector<S> result(n);
  for (std::size_t i = 0; i < n; ++i) result[i] = o[i] - lambda * o[n + i];
  for (std::size_t first = 0; first < n; first += width) {
    S square = 0;
    for (std::size_t i = 0; i < width; ++i) square += result[first + i] * result[first + i];
    const S rms =
        std::sqrt(square / static_cast<S>(width) + static_cast<S>(in.number("sub_norm_eps")));
    for (std::size_t i = 0; i < width; ++i) {
      result[first + i] *= (1 - start) / rms;
      if (in.flag("sub_norm_weight")) result[first + i] *= in.weight("subln.weight").numbers[i];
    }
  }
  return result;
}

/// Multiplies the queries of one token, which are turned, by their temperature and by the scales of
/// their heads.
template <class S>
void sharpen(const Input<S>& in, Index t, std::vector<S>& q) {
  const S sharper = temperature(in, t);
  const auto count = static_cast<Index>(q.size()), K = count / in.size("n_heads");
  for (Index i = 0; i < count; ++i) {
    q[static_cast<std::size_t>(i)] *=
        in.flag("head_scale") ? sharper * in.weight("scale_param")(i / K) : sharper;
  }
}

/// y of what the heads of a token made.
template <class S>
std::vector<S> project_outputs(const Input<S>& in, const std::vector<S>& x, std::vector<S> o) {
  if (text_or(in, "merge", "one") == "difference") o = difference_of_halves(in, o);
  if (text_or(in, "output_norm", "none") == "gated_rms") {
    S square = 0;
    for (const S number : o) square += number * number / static_cast<S>(o.size());
    const S rms = std::sqrt(square + static_cast<S>(in.number("output_norm_eps")));
    const Array<S>&weight = in.weight("o_norm.weight"), &gate = in.weight("o_norm.gate");
    for (std::size_t i = 0; i < o.size(); ++i) {
      o[i] = weight.numbers[i] * o[i] / rms * sigmoid(gate.numbers[i] * o[i]);
    }
  }
  if (const std::string gated = in.text("output_gate"); gated != "none") {
    const std::vector<S> gate = linear<S>(in.weight("g_proj.weight"), nullptr, x);
    const std::size_t numbers_per_gate = o.size() / gate.size();
    for (std::size_t i = 0; i < o.size(); ++i) o[i] /= 1 + std::exp(-gate[i / numbers_per_gate]);
  }
  const Array<S>* const bias = flag_or(in, "o_bias", false) ? &in.weight("o_proj.bias") : nullptr;
  return linear<S>(in.weight("o_proj.weight"), bias, o);
}

/// The score of head h for a query at t and a key at j, once its config has been read.
template <class S>
class AttentionScore {
 public:
  explicit AttentionScore(const Input<S>& in)
      : K_(in.size("head_dim")),
        scale_(number_or(in, "score_scale", 0) > 0
                   ? in.number("score_scale")
                   : 1 / std::sqrt(static_cast<double>(K_ * terms_of_products(in)))),
        divisor_(number_or(in, "score_divisor", 1)),
        cap_(number_or(in, "soft_cap", 0)),
        bias_(in, scale_) {}

  double scale() const { return scale_; }
  S product(const S* query, const S* key) const {
    S sum = 0;
    for (Index i = 0; i < K_; ++i) sum += query[i] * key[i];
    return sum * static_cast<S>(scale_);
  }
  S bias(Index h, Index t, Index j) const { return static_cast<S>(bias_(h, t, j)); }
  /// `more`: what the tokens' content adds.
  S operator()(const S* query, const S* key, Index h, Index t, Index j, S more = 0) const {
    const S score = (product(query, key) + more + bias(h, t, j)) / static_cast<S>(divisor_);
    return cap_ > 0 ? static_cast<S>(cap_) * std::tanh(score / static_cast<S>(cap_)) : score;
  }

 private:
  Index K_;
  double scale_, divisor_, cap_;
  ScoreBias<S> bias_;
};

/// Σ softmax(score) value over lists of scores and values, [K]. A last score without a value counts
/// in the sum alone.
template <class S>
std::vector<S> softmax_mean(std::vector<S> score, const std::vector<const S*>& value, Index K) {
  std::vector<S> o(static_cast<std::size_t>(K));
  const S largest = *std::max_element(score.begin(), score.end());
  S total = 0;
  for (S& s : score) total += s = std::exp(s - largest);
  for (Index i = 0; i < K; ++i) {
    S sum = 0;
    for (std::size_t j = 0; j < value.size(); ++j) sum += score[j] * value[j][i];
    o[static_cast<std::size_t>(i)] = sum / total;
  }
  return o;
}

/// The weights of all scores of head h of the query at t, whose keys are at `seen`.
template <class S>
std::vector<S> row_weights(const Input<S>& in, Index h, Index t, const std::vector<Index>& seen,
                           std::vector<S> score) {
  const std::string kind = in.text("normaliser"), own_key = in.text("own_key");
  const std::size_t n = score.size();
  std::vector<S> weight(n);
  if (kind == "layer_norm") {  // Richter & Wattenhofer 2020, arXiv:2005.09561
    S mean = 0, square = 0;
    for (const S s : score) mean += s / static_cast<S>(n);
    for (const S s : score) square += (s - mean) * (s - mean) / static_cast<S>(n);
    const S deviation = std::sqrt(square) + static_cast<S>(in.number("normaliser_eps"));
    const S gain = in.weight("score_norm.gain")(h), bias = in.weight("score_norm.bias")(h);
    for (std::size_t j = 0; j < n; ++j) weight[j] = gain * (score[j] - mean) / deviation + bias;
    return weight;
  }
  if (kind == "sparsemax" || kind == "entmax15") {
    // The threshold of the largest support that it leaves. Martins & Astudillo 2016,
    // arXiv:1602.02068, algorithm 1; Peters et al. 2019, arXiv:1905.05702, algorithm 2.
    const bool squared = kind == "entmax15";
    if (squared) {
      for (S& s : score) s /= 2;
    }
    std::vector<S> sorted = score;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    S threshold = 0, sum = 0, squares = 0;
    for (std::size_t k = 1; k <= n; ++k) {
      const S s = sorted[k - 1] - sorted[0], count = static_cast<S>(k);
      sum += s, squares += s * s;
      const S mean = sum / count, rest = (1 - (squares - sum * mean)) / count;
      const S next = squared ? mean - std::sqrt(std::max(rest, S(0))) : (sum - 1) / count;
      if (next <= s) threshold = next + sorted[0];
    }
    for (std::size_t j = 0; j < n; ++j) {
      const S above = std::max(score[j] - threshold, S(0));
      weight[j] = squared ? above * above : above;
    }
    return weight;
  }
  // Tan et al. 2024, arXiv:2410.17980; Csordás et al. 2021, arXiv:2110.07732, eq. 7.
  std::vector<std::size_t> nearest(n);
  for (std::size_t j = 0; j < n; ++j) nearest[j] = j;
  const auto far = [&](std::size_t j) {
    return seen[j] > t ? 2 * (seen[j] - t) - 1 : 2 * (t - seen[j]);
  };
  std::sort(nearest.begin(), nearest.end(),
            [&](std::size_t i, std::size_t j) { return far(i) < far(j); });
  S left = 1, sum = 0;
  std::size_t own = n;
  for (const std::size_t j : nearest) {
    if (seen[j] == t) own = j;
    if (seen[j] == t && own_key != "seen") continue;
    weight[j] = left * sigmoid(score[j]);
    left *= sigmoid(-score[j]), sum += weight[j];
  }
  if (own_key == "remainder") weight[own] = left;
  if (kind == "stick_breaking") return weight;
  for (S& p : weight) p /= std::max(sum, S(1e-12));
  return weight;
}

/// The weight of a pair of this score, whatever the others are. Zhang et al. 2021,
/// arXiv:2104.07012; Hua et al. 2022, arXiv:2202.10447; Ramapuram et al. 2024, arXiv:2409.04431.
template <class S>
S pair_weight(const Input<S>& in, S score) {
  const std::string kind = in.text("normaliser");
  const Index given = in.size("normaliser_length");
  const double length = given > 0 ? static_cast<double>(given) : 1;
  if (kind == "sigmoid") {
    return sigmoid(score + static_cast<S>(in.number("normaliser_bias") - std::log(length)));
  }
  const S positive = std::max(score, S(0)), part = positive / static_cast<S>(length);
  return kind == "relu" ? positive : part * part;
}

/// What head h makes of the values, [K], of the keys at `seen` for the query at t.
template <class S>
std::vector<S> weighted_values(const Input<S>& in, Index h, Index t, const std::vector<Index>& seen,
                               std::vector<S> score, const std::vector<const S*>& value, Index K) {
  const std::string kind = in.text("normaliser");
  if (score.empty()) return std::vector<S>(static_cast<std::size_t>(K));
  if (kind == "softmax") {
    if (in.flag("sink_logits")) score.push_back(in.weight("sinks")(h));
    return softmax_mean(score, value, K);
  }
  if (kind == "sigmoid" || kind == "relu" || kind == "relu_squared") {
    for (S& s : score) s = pair_weight(in, s);
  } else {
    score = row_weights(in, h, t, seen, score);
  }
  std::vector<S> o(static_cast<std::size_t>(K));
  for (std::size_t j = 0; j < value.size(); ++j) {
    for (Index i = 0; i < K; ++i) o[static_cast<std::size_t>(i)] += score[j] * value[j][i];
  }
  return o;
}

/// Where the two tokens of a pair are, and an angle by which all pairs of the query's numbers are
/// turned besides.
struct PlacesOfPair {
  Place query, key;
  double turn = 0;
};

/// Turns all pairs of a head by one angle.
template <class S>
void turn_all_pairs(const Input<S>& in, S* head, double angle) {
  const Index rotary = in.size("rotary_dim"), first = in.size("rotary_offset");
  const bool interleaved = in.flag("rope_interleaved");
  for (Index i = 0; i < rotary / 2; ++i) {
    S& a = head[first + (interleaved ? 2 * i : i)];
    S& b = head[first + (interleaved ? 2 * i + 1 : i + rotary / 2)];
    const S x = a, y = b, cosine = static_cast<S>(std::cos(angle));
    const S sine = static_cast<S>(std::sin(angle));
    a = x * cosine - y * sine, b = x * sine + y * cosine;
  }
}

/// How often head h of token t sees token j, where heads differ or not.
Index head_sees(auto&& sees, Index h, Index t, Index j) {
  if constexpr (requires { sees(h, t, j); }) {
    return sees(h, t, j);
  } else {
    return sees(t, j);
  }
}

/// One row of attention: token t sees the tokens j with `sees(t, j)`, or its head h those with
/// `sees(h, t, j)`; of such a pair query and key are rotated to `places(t, j)`.
template <class S>
void attention_row(const Input<S>& in, Index b, auto&& sees, auto&& places, Output<S>& out) {
  const HeadCounts<S> of_heads(in);
  const Index T = in.T(), H = of_heads.H, K = in.size("head_dim"), V = value_width(in);
  const AttentionScore<S> score_of(in);
  const ContentBias<S> content(in, b, score_of.scale());
  std::vector<TokenHeads<S>> tokens;
  for (Index t = 0; t < T; ++t) tokens.emplace_back(in, b, t);
  struct Key {
    Place at = {};
    std::vector<S> heads = {};
  };
  std::vector<Key> placed(tokens.size());  // as they were last seen: few ever change their place
  for (Index t = 0; t < T; ++t) {
    std::map<std::pair<Place, double>, std::vector<S>> queries;
    std::vector<Index> seen;
    std::vector<const S*> query;
    for (Index j = 0; j < T; ++j) {
      bool some = false;
      for (Index h = 0; h < H && !some; ++h) some = head_sees(sees, h, t, j) > 0;
      if (!some) continue;
      const PlacesOfPair at = places(t, j);
      std::vector<S>& q = queries[{at.query, at.turn}];
      if (q.empty()) {
        q = tokens[static_cast<std::size_t>(t)].q;
        place(in, "q_norm", q, at.query), grow_by_position(in, q, at.query[0]);
        for (Index h = 0; h < H && at.turn != 0; ++h) turn_all_pairs(in, q.data() + h * K, at.turn);
        sharpen(in, t, q);
      }
      seen.push_back(j), query.push_back(q.data());
      Key& key = placed[static_cast<std::size_t>(j)];
      if (key.at == at.key) continue;
      key = {at.key, tokens[static_cast<std::size_t>(j)].k};
      place(in, "k_norm", key.heads, key.at), grow_by_position(in, key.heads, -key.at[0]);
    }
    std::vector<S> o;
    for (Index h = 0; h < H; ++h) {
      const Index key_head = of_heads.key_of(h), value_head = of_heads.value_of(h);
      std::vector<Index> own;
      std::vector<S> score;
      std::vector<const S*> value;
      for (std::size_t n = 0; n < seen.size(); ++n) {
        const Index j = seen[n];
        const auto at = static_cast<std::size_t>(j);
        const S* const q = query[n] + h * K;
        const S* const k = placed[at].heads.data() + key_head * K;
        S more = content(q, k, h, t, j);
        if (content.adapts()) {
          std::vector<S> numbers;  // products of all heads, then their biases
          for (Index i = 0; i < H; ++i) {
            const S* const key = placed[at].heads.data() + of_heads.key_of(i) * K;
            numbers.push_back(score_of.product(query[n] + i * K, key));
          }
          for (Index i = 0; i < H; ++i) numbers.push_back(score_of.bias(i, t, j));
          more = content.adapted(h, numbers);
        }
        for (Index times = head_sees(sees, h, t, j); times > 0; --times) {
          own.push_back(j);
          score.push_back(score_of(q, k, h, t, j, more));
          value.push_back(tokens[at].v.data() + value_head * V);
        }
      }
      content.add_to_row(query.empty() ? nullptr : query[0] + h * K, score);
      const std::vector<S> head = weighted_values(in, h, t, own, score, value, V);
      o.insert(o.end(), head.begin(), head.end());
    }
    set_token(out.y, b, t, project_outputs(in, token(in.x, b, t), o));
  }
}

/// The same where each token has its own place, whatever the pair.
template <class S>
void attention_row(const Input<S>& in, Index b, auto&& sees, Output<S>& out) {
  const auto places = [&](Index t, Index j) {
    return PlacesOfPair{place_of(in, b, t), place_of(in, b, j)};
  };
  attention_row(in, b, sees, places, out);
}

/// Keys [B, key heads, entries, K] and values [B, value heads, entries, V] of the tokens of `list`,
/// keys rotated to `place_of_key(b, t)`.
template <class S>
std::pair<Array<S>, Array<S>> cached(const Input<S>& in, const std::vector<Index>& list,
                                     auto&& place_of_key) {
  const HeadCounts<S> of_heads(in);
  const Index B = in.B(), K = in.size("head_dim"), V = value_width(in);
  const auto count = static_cast<Index>(list.size());
  Array<S> keys({B, of_heads.keys, count, K}), values({B, of_heads.values, count, V});
  for (Index b = 0; b < B; ++b) {
    for (Index n = 0; n < count; ++n) {
      const Index t = list[static_cast<std::size_t>(n)];
      if (t < 0) continue;
      TokenHeads<S> heads(in, b, t);
      place(in, "k_norm", heads.k, place_of_key(b, t));
      for (Index g = 0; g < of_heads.keys; ++g) {
        for (Index i = 0; i < K; ++i) {
          keys(b, g, n, i) = heads.k[static_cast<std::size_t>(g * K + i)];
        }
      }
      for (Index g = 0; g < of_heads.values; ++g) {
        for (Index i = 0; i < V; ++i) {
          values(b, g, n, i) = heads.v[static_cast<std::size_t>(g * V + i)];
        }
      }
    }
  }
  return {keys, values};
}

/// The same where each token has its own place.
template <class S>
std::pair<Array<S>, Array<S>> cached(const Input<S>& in, const std::vector<Index>& list) {
  return cached(in, list, [&](Index b, Index t) { return place_of(in, b, t); });
}
/// The tokens that a ring of so many rows keeps.
template <class S>
std::vector<Index> tokens_of_ring(const Input<S>& in, Index rows) {
  std::vector<Index> ring(static_cast<std::size_t>(std::min(in.T(), rows)));
  for (Index t = 0; t < in.T(); ++t) ring[static_cast<std::size_t>(t % rows)] = t;
  return ring;
}

/// The last inputs of the convolutions, [B, W - 1, channels], oldest first; queries, keys, values.
template <class S>
Array<S> last_inputs(const Input<S>& in) {
  const Index past = in.size("conv_kernel") - 1;
  const auto of_token = [&](Index b, Index t) {
    std::vector<S> all;
    for (const char* name : {"q", "k", "v"}) {
      const auto numbers = TokenHeads<S>::projected(in, b, t, name);
      all.insert(all.end(), numbers.begin(), numbers.end());
    }
    return all;
  };
  Array<S> result({in.B(), past, static_cast<Index>(of_token(0, -1).size())});
  for (Index b = 0; b < in.B(); ++b) {
    for (Index w = 0; w < past; ++w) set_token(result, b, w, of_token(b, in.T() - past + w));
  }
  return result;
}

/// What forget gates leave in the state of the tokens of `list`.
template <class S>
void remember_gates(const Input<S>& in, const std::vector<Index>& list, Output<S>& out) {
  if (content_kind(in) != "forget_gate") return;
  const Index H = in.size("n_heads"), count = static_cast<Index>(list.size());
  Array<S>& logs = out.state["log_forget"];
  logs = Array<S>({in.B(), H, count, 1});
  for (Index b = 0; b < in.B(); ++b) {
    for (Index n = 0; n < count; ++n) {
      const auto own = log_forget(in, token(in.x, b, list[static_cast<std::size_t>(n)]));
      for (Index h = 0; h < H; ++h) logs(b, h, n, 0) = own[static_cast<std::size_t>(h)];
    }
  }
}

template <class S>
Array<S> all_at(const Input<S>& in) {
  Array<S> position({in.B()});
  for (S& tokens : position.numbers) tokens = static_cast<S>(in.T());
  return position;
}

/// A state with these keys and values.
template <class S>
std::map<std::string, Array<S>> state_of(const Input<S>& in, const Array<S>& keys,
                                         const Array<S>& values) {
  std::map<std::string, Array<S>> state{
      {"position", all_at(in)}, {"keys", keys}, {"values", values}};
  if (in.size("conv_kernel") > 1) state["conv"] = last_inputs(in);
  return state;
}

/// The window of each head. Fu et al. 2024, arXiv:2406.14909, section 3.
template <class S>
std::vector<Index> windows_of_heads(const Input<S>& in) {
  const Index H = in.size("n_heads");
  auto list = in.config.at("windows").template get<std::vector<Index>>();
  if (list.empty()) list.push_back(in.size("window"));
  std::vector<Index> windows;
  for (Index h = 0; h < H; ++h) {
    windows.push_back(list[static_cast<std::size_t>(h / (H / static_cast<Index>(list.size())))]);
  }
  return windows;
}

/// Chunks from that of the key at j to that of head h of a query at t. Chen et al. 2023,
/// arXiv:2309.12307, section 3.2.
template <class S>
Index chunks_between(const Input<S>& in, Index h, Index t, Index j) {
  const Index size = in.size("chunk");
  const Index shift = 2 * h >= in.size("n_heads") ? in.size("chunk_shift") : 0;
  return (t + shift) / size - (j + shift) / size;
}

/// How many branches of dilated attention show head h of a query at t the key at j. Ding et al.
/// 2023, arXiv:2307.02486, eq. 3-11.
template <class S>
class SegmentBranches {
 public:
  explicit SegmentBranches(const Input<S>& in)
      : H_(in.size("n_heads")),
        lengths_(in.config.at("segments").template get<std::vector<Index>>()),
        dilations_(in.config.at("segment_dilations").template get<std::vector<Index>>()) {}
  bool any() const { return !lengths_.empty(); }
  Index longest() const { return *std::max_element(lengths_.begin(), lengths_.end()); }
  /// The least number that all dilations divide.
  Index together() const {
    Index number = 1;
    const auto divides = [&](Index r) { return number % r == 0; };
    while (!std::all_of(dilations_.begin(), dilations_.end(), divides)) ++number;
    return number;
  }
  Index operator()(Index h, Index t, Index j) const {
    Index count = 0;
    for (std::size_t i = 0; i < lengths_.size(); ++i) {
      const Index w = lengths_[i], r = dilations_[i], run = h / ((H_ + r - 1) / r);
      count += t / w == j / w && t % w % r == run && j % w % r == run ? 1 : 0;
    }
    return count;
  }

 private:
  Index H_;
  std::vector<Index> lengths_, dilations_;
};

/// Jiang et al. 2023, arXiv:2310.06825, section 2; with sinks Xiao et al. 2023, arXiv:2309.17453,
/// where each visible token stands in a slot of the cache and is rotated to it.
template <class S>
Output<S> sliding_window_attention(const Input<S>& parts) {
  const Input<S> in = with_flat_config(parts);
  const Index T = in.T(), step = in.size("dilation");
  const Index sinks = in.size("n_sinks"), chunk = in.size("chunk"), back = in.size("chunks_back");
  const std::vector<Index> windows = windows_of_heads(in);
  const Index W = *std::max_element(windows.begin(), windows.end());
  const SegmentBranches<S> branches(in);
  const auto sees = [&](Index h, Index t, Index j) -> Index {
    if (branches.any()) return j <= t ? branches(h, t, j) : 0;
    if (chunk > 0) return j <= t && (j < sinks || chunks_between(in, h, t, j) <= back);
    const Index far = windows[static_cast<std::size_t>(h)] * step;
    return j <= t && (j < sinks || (t - j < far && (t - j) % step == 0));
  };
  const auto slot = [&](Index t, Index j) {
    const bool full = t >= sinks + W;
    return !full || j < sinks ? j : sinks + j - (t - W + 1);
  };
  // Han et al. 2023, arXiv:2308.16137: no distance counts beyond W.
  const bool clamped = text_or(in, "remap", "none") == "lm_infinite";
  const auto slots = [&](Index t, Index j) {
    if (clamped) return PlacesOfPair{{std::min(t - j, W)}, {0}};
    return PlacesOfPair{{slot(t, t)}, {slot(t, j)}};
  };
  Output<S> out{in.x, {}};
  for (Index b = 0; b < in.B(); ++b) {
    if (sinks > 0 && !in.flag("sinks_in_place")) {
      attention_row(in, b, sees, slots, out);
    } else {
      attention_row(in, b, sees, out);
    }
  }

  const Index seen = branches.any() ? branches.longest()
                     : chunk > 0    ? (back + 1) * chunk
                                    : (W - 1) * step + 1;
  const Index reach = seen + in.size("max_rollback"), multiple = step * branches.together();
  const Index rows = (reach + multiple - 1) / multiple * multiple;
  const auto [keys, values] = cached(in, tokens_of_ring(in, rows));
  out.state = state_of(in, keys, values);
  remember_gates(in, tokens_of_ring(in, rows), out);
  if (sinks == 0) return out;
  std::vector<Index> first(static_cast<std::size_t>(sinks), -1);  // a token that is not there: 0
  for (Index t = 0; t < std::min(T, sinks); ++t) first[static_cast<std::size_t>(t)] = t;
  const auto [sink_keys, sink_values] =
      cached(in, first, [&](Index b, Index t) { return clamped ? Place{0} : place_of(in, b, t); });
  out.state["sink_keys"] = sink_keys, out.state["sink_values"] = sink_values;
  return out;
}

/// Jin et al. 2024, arXiv:2401.01325, section 3.2.
template <class S>
Output<S> self_extend(const Input<S>& in) {
  const Index W = in.size("remap_window"), group = in.size("remap_group");
  const auto places = [&](Index t, Index j) {
    if (t - j < W) return PlacesOfPair{{t}, {j}};
    return PlacesOfPair{{t / group + W - W / group}, {j / group}};
  };
  Output<S> out{in.x, {}};
  std::vector<Index> list;
  for (Index t = 0; t < in.T(); ++t) list.push_back(t);
  for (Index b = 0; b < in.B(); ++b) {
    attention_row(
        in, b, [](Index t, Index j) { return j <= t; }, places, out);
  }
  const auto [keys, values] = cached(in, list, [&](Index, Index t) { return Place{t / group}; });
  const auto [near_keys, near_values] = cached(in, tokens_of_ring(in, W + in.size("max_rollback")));
  out.state = state_of(in, keys, values);
  out.state["near_keys"] = near_keys, out.state["near_values"] = near_values;
  remember_gates(in, list, out);
  return out;
}

/// An et al. 2024, arXiv:2402.17463, section 3; with chunks that have angles Ma et al. 2024,
/// arXiv:2406.09897.
template <class S>
Output<S> dual_chunk_attention(const Input<S>& in) {
  const Index most = in.size("remap_chunk"), c = most - in.size("remap_local");
  const bool angles = in.text("remap") == "rpe_3d";
  const auto angle = [&](Index chunk) {
    return std::pow(in.number("rope_theta"), -static_cast<double>(chunk));
  };
  const auto places = [&](Index t, Index j) {
    const Index chunks = t / c - j / c, at = t % c;
    const Index query = chunks == 0 ? at : std::min(chunks == 1 ? at + c : 2 * c - 1, most);
    const double turn = angles && chunks > 1 ? angle(t / c - 1) - angle(j / c) : 0;
    return PlacesOfPair{{query}, {j % c}, turn};
  };
  Output<S> out{in.x, {}};
  std::vector<Index> list;
  for (Index t = 0; t < in.T(); ++t) list.push_back(t);
  for (Index b = 0; b < in.B(); ++b) {
    attention_row(
        in, b, [](Index t, Index j) { return j <= t; }, places, out);
  }
  auto [keys, values] = cached(in, list, [&](Index, Index t) { return Place{t % c}; });
  for (Index b = 0; b < in.B() && angles; ++b) {
    for (Index g = 0; g < HeadCounts<S>(in).keys; ++g) {
      for (const Index t : list) turn_all_pairs(in, &keys(b, g, t, 0), angle(t / c));
    }
  }
  out.state = state_of(in, keys, values);
  remember_gates(in, list, out);
  return out;
}

/// Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
template <class S>
Output<S> attention(const Input<S>& parts) {
  const Input<S> in = with_flat_config(parts);
  const bool windowed = in.size("window") > 0 || !in.config.at("windows").empty();
  if (windowed || in.size("chunk") > 0 || SegmentBranches<S>(in).any()) {
    return sliding_window_attention(parts);
  }
  const std::string remap = text_or(in, "remap", "none");
  if (remap == "self_extend") return self_extend(in);
  if (remap == "dual_chunk" || remap == "rpe_3d") return dual_chunk_attention(in);
  Output<S> out{in.x, {}};
  for (Index b = 0; b < in.B(); ++b) {
    attention_row(
        in, b, [](Index t, Index j) { return j <= t; }, out);
  }
  std::vector<Index> list;
  for (Index t = 0; t < in.T(); ++t) list.push_back(t);
  const auto [keys, values] = cached(in, list);
  out.state = state_of(in, keys, values);
  remember_gates(in, list, out);
  return out;
}

inline const std::vector<std::string> attention_configs{
    R"({"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rotary_dim": 8,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false})",
    R"({"d_model": 21, "n_heads": 3, "n_kv_heads": 3, "head_dim": 7, "rotary_dim": 4,
        "rope_theta": 100, "rope_interleaved": true, "qkv_bias": true})",
    R"({"d_model": 30, "n_heads": 5, "n_kv_heads": 1, "head_dim": 34, "rotary_dim": 34,
        "rope_theta": 500000, "rope_interleaved": false, "qkv_bias": true})",
    R"({"d_model": 12, "n_heads": 2, "n_kv_heads": 2, "head_dim": 5, "rotary_dim": 0,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false})",
    R"({"d_model": 13, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false, "qk_norm": "head",
        "qk_norm_eps": 0.01, "soft_cap": 2.5, "score_scale": 0.3, "rope_scaling": "linear",
        "rope_factor": 3.0})",
    R"({"d_model": 14, "n_heads": 6, "n_kv_heads": 3, "head_dim": 3, "rotary_dim": 0,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": true, "o_bias": true,
        "qk_norm": "projection", "alibi": true})",
    R"({"d_model": 11, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "rotary_dim": 16,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false, "rope_scaling": "yarn",
        "rope_factor": 4.0, "rope_original_length": 64, "rope_beta_fast": 8, "rope_beta_slow": 1})",
    R"({"d_model": 11, "n_heads": 2, "n_kv_heads": 1, "head_dim": 14, "rotary_dim": 12,
        "rope_theta": 1000, "rope_interleaved": true, "qkv_bias": false, "rope_scaling": "llama3",
        "rope_factor": 8.0, "rope_original_length": 50})",
    R"({"d_model": 11, "n_heads": 2, "n_kv_heads": 2, "head_dim": 10, "rotary_dim": 10,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false, "rope_scaling": "ntk",
        "rope_factor": 2.5})",
    R"({"d_model": 12, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "value_dim": 5,
        "k_bias": true, "qkv_clip": 0.7, "qk_norm": "head", "qk_norm_kind": "layer",
        "qk_norm_weight": "by_head", "qk_norm_bias": true, "output_gate": "channel"},
        "positions": {"rotary_dim": 4}, "scores": {"sink_logits": true}})",
    R"({"d_model": 10, "heads": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 4, "value_dim": 9,
        "qk_norm": "head", "qk_norm_kind": "l2", "qk_norm_rotated": true, "output_gate": "head"},
        "positions": {"rotary_dim": 2}, "bias": {"kind": "alibi", "alibi_bias_max": 6},
        "scores": {"score_scale": 8, "soft_cap": 3, "sink_logits": true, "temperature": "stepped",
        "temperature_rate": 0.5, "temperature_length": 10, "temperature_offset": 1}})",
    R"({"d_model": 9, "heads": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 7, "qk_norm": "head",
        "qk_norm_weight": "none", "qk_norm_rotated": true}, "positions": {"rotary_dim": 6},
        "sees": {"window": 30}, "scores": {"sink_logits": true, "temperature": "logarithmic",
        "temperature_length": 12}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 5}, "positions": {"rotary_dim": 4},
        "sees": {"chunk": 24}, "store": {"max_rollback": 2}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 5}, "sees": {"chunk": 7,
        "chunks_back": 2}, "bias": {"kind": "alibi"}})",
    R"({"d_model": 11, "n_heads": 2, "n_kv_heads": 1, "head_dim": 11, "rotary_dim": 8,
        "rotary_offset": 3, "rope_theta": 1000, "rope_interleaved": true, "qkv_bias": false,
        "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 64,
        "rope_beta_fast": 8, "rope_truncate": false, "rope_mscale": 1.0,
        "rope_mscale_all_dim": 0.4, "rope_resonance": true})",
    R"({"d_model": 9, "n_heads": 2, "n_kv_heads": 2, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false,
        "rope_scaling": "longrope", "rope_factor": 4.0, "rope_original_length": 20,
        "rope_length": 80, "rope_short_factor": [1.0, 1.2, 1.4],
        "rope_long_factor": [1.0, 2.5, 3.75]})",
    R"({"d_model": 9, "n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false,
        "rope_scaling": "dynamic", "rope_factor": 2.0, "rope_original_length": 20,
        "rope_length": 70, "rope_xpos": 32.0})",
    R"({"d_model": 10, "n_heads": 2, "n_kv_heads": 1, "head_dim": 7, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": true, "qkv_bias": false, "rope_closed": true,
        "rope_xpos": 512.0, "soft_cap": 4.0})",
    R"({"d_model": 10, "n_heads": 2, "n_kv_heads": 2, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false,
        "rope_scaling": "table", "rope_angles": [1.5, 0.125, 0.0]})",
    R"({"d_model": 10, "heads": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 7},
        "positions": {"rotary_dim": 6, "rope_interleaved": true, "given": 1}})",
    R"({"d_model": 10, "heads": {"n_heads": 2, "head_dim": 12, "qk_norm": "head",
        "qk_norm_rotated": true}, "positions": {"rotary_dim": 10, "rotary_offset": 1, "given": 3,
        "rope_sections": [2, 1, 2]}, "sees": {"window": 9}})",
    R"({"d_model": 10, "heads": {"n_heads": 2, "head_dim": 12}, "positions": {"rotary_dim": 12,
        "given": 3, "rope_sections": [3, 2, 1], "rope_section_order": "interleaved",
        "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 64}})",
    R"({"d_model": 10, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "value_dim": 5},
        "positions": {"rotary_dim": 6, "rope_theta": 100, "remap": "self_extend",
        "remap_window": 12, "remap_group": 5}, "store": {"max_rollback": 3},
        "scores": {"sink_logits": true}})",
    R"({"d_model": 9, "heads": {"n_heads": 2, "head_dim": 8, "qk_norm": "head",
        "qk_norm_rotated": true}, "positions": {"rotary_dim": 4, "rotary_offset": 3,
        "remap": "self_extend", "remap_window": 70, "remap_group": 4}})",
    R"({"d_model": 10, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "value_dim": 8},
        "positions": {"rotary_dim": 6, "rope_theta": 100, "remap": "dual_chunk",
        "remap_chunk": 20, "remap_local": 7}, "scores": {"sink_logits": true, "soft_cap": 3}})",
    R"({"d_model": 9, "heads": {"n_heads": 2, "head_dim": 4}, "positions": {"rotary_dim": 4,
        "rope_interleaved": true, "remap": "dual_chunk", "remap_chunk": 90, "remap_local": 10}})",
    R"({"d_model": 10, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8}, "positions":
        {"rotary_dim": 6, "rotary_offset": 1, "rope_theta": 3, "rope_interleaved": true,
        "remap": "rpe_3d", "remap_chunk": 20, "remap_local": 7}, "scores": {"sink_logits": true}})",
    R"({"d_model": 9, "heads": {"n_heads": 2, "head_dim": 6}, "positions": {"rotary_dim": 6,
        "rope_theta": 10000, "remap": "rpe_3d", "remap_chunk": 30}})",
    R"({"d_model": 9, "heads": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 5,
        "output_norm": "gated_rms", "output_norm_eps": 0.01}, "positions": {"rotary_dim": 4},
        "scores": {"normaliser": "relu"}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 6, "value_dim": 21},
        "bias": {"kind": "alibi"}, "scores": {"normaliser": "relu_squared",
        "normaliser_length": 3, "score_scale": 1}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6},
        "positions": {"rotary_dim": 6}, "sees": {"window": 70}, "store": {"max_rollback": 2},
        "scores": {"normaliser": "sigmoid", "normaliser_length": 64, "normaliser_bias": 0.5,
        "soft_cap": 2.5}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6},
        "positions": {"rotary_dim": 6}, "scores": {"normaliser": "layer_norm",
        "score_scale": 1}})",
    R"({"d_model": 9, "heads": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 5}, "bias":
        {"kind": "alibi"}, "scores": {"normaliser": "sparsemax", "soft_cap": 4}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 4, "value_dim": 19},
        "positions": {"rotary_dim": 4}, "sees": {"window": 70}, "store": {"max_rollback": 2},
        "scores": {"normaliser": "entmax15", "score_scale": 1.5}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 6},
        "scores": {"normaliser": "stick_breaking", "own_key": "remainder"}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 5},
        "sees": {"window": 9, "dilation": 3}, "scores": {"normaliser": "geometric"}})",
    R"({"d_model": 10, "heads": {"n_heads": 4, "n_kv_heads": 4, "n_value_heads": 2, "head_dim": 5,
        "value_dim": 10}, "positions": {"rotary_dim": 4}, "merge": {"kind": "difference"}})",
    R"({"d_model": 9, "heads": {"n_heads": 8, "n_kv_heads": 4, "n_value_heads": 2, "head_dim": 4,
        "value_dim": 7, "output_gate": "head", "o_bias": true}, "bias": {"kind": "alibi"},
        "sees": {"window": 9}, "store": {"max_rollback": 2}, "scores": {"sink_logits": true},
        "merge": {"kind": "difference", "lambda_init": 0.3, "sub_norm_weight": true,
        "sub_norm_eps": 0.01}})",
    R"({"d_model": 10, "heads": {"n_heads": 6, "n_kv_heads": 3, "n_key_heads": 1, "head_dim": 6,
        "qk_norm": "head"}, "positions": {"rotary_dim": 6}, "sees": {"window": 21}})",
    R"({"d_model": 9, "heads": {"n_heads": 4, "n_kv_heads": 4, "n_key_heads": 2, "head_dim": 5,
        "value_dim": 3}, "scores": {"normaliser": "sparsemax"}})",
    R"({"d_model": 9, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "k_bias": true,
        "qkv_clip": 0.7, "qk_norm": "head", "values_are_keys": true, "value_norm": true,
        "value_norm_eps": 0.01}, "positions": {"rotary_dim": 6}})",
    R"({"d_model": 9, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "value_dim": 5,
        "q_bias": true, "conv_kernel": 4, "conv_silu": true, "qk_norm": "head"},
        "positions": {"rotary_dim": 6}})",
    R"({"d_model": 7, "heads": {"n_heads": 2, "head_dim": 5, "conv_kernel": 3, "conv_bias": true},
        "sees": {"window": 13}})",
    R"({"d_model": 7, "heads": {"n_heads": 2, "head_dim": 4, "conv_kernel": 1}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 5, "qk_norm": "head",
        "qk_norm_kind": "l2", "qk_norm_rotated": true}, "positions": {"rotary_dim": 4},
        "scores": {"head_scale": true, "score_divisor": 0.8, "soft_cap": 3}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 5}, "bias": {"kind": "t5",
        "num_buckets": 12, "max_distance": 30}, "scores": {"head_scale": true,
        "score_divisor": 0.7}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 5},
        "positions": {"rotary_dim": 4}, "sees": {"windows": [70, 3]},
        "store": {"max_rollback": 2}})",
    R"({"d_model": 9, "heads": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 4},
        "positions": {"rotary_dim": 4, "given": 1}, "sees": {"windows": [9, 1, 20], "n_sinks": 4,
        "sinks_in_place": true}, "scores": {"sink_logits": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4}, "bias": {"kind": "alibi"},
        "sees": {"window": 6, "n_sinks": 70, "sinks_in_place": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "sees": {"chunk": 22, "chunk_shift": 11,
        "chunks_back": 1}, "store": {"max_rollback": 2}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "sees": {"chunk": 70, "chunk_shift": 9, "n_sinks": 5,
        "sinks_in_place": true}, "scores": {"sink_logits": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "sees": {"segments": [20, 36],
        "segment_dilations": [1, 3]}, "store": {"max_rollback": 2},
        "scores": {"sink_logits": true}})",
    R"({"d_model": 9, "heads": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 4, "value_dim": 5},
        "sees": {"segments": [16, 30, 300], "segment_dilations": [2, 5, 4]},
        "scores": {"soft_cap": 3}})",
    R"({"d_model": 9, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 5},
        "positions": {"rotary_dim": 4}, "content": {"kind": "forget_gate"}})",
    R"({"d_model": 8, "heads": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 4},
        "content": {"kind": "forget_gate"}, "sees": {"window": 70}, "store": {"max_rollback": 3},
        "scores": {"soft_cap": 5, "sink_logits": true}})",
    R"({"d_model": 9, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 5}, "bias":
        {"kind": "alibi"}, "content": {"kind": "cape", "mlp_width": 9},
        "scores": {"sink_logits": true}})",
    R"({"d_model": 10, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 5},
        "content": {"kind": "transformer_xl", "max_distance": 90}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 7},
        "content": {"kind": "transformer_xl", "max_distance": 20}, "sees": {"window": 30}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6},
        "content": {"kind": "cope", "n_positions": 9}, "scores": {"sink_logits": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 5}, "positions": {"rotary_dim": 4},
        "content": {"kind": "cope", "n_positions": 40}, "sees": {"window": 75}})",
    R"({"d_model": 9, "heads": {"n_heads": 2, "head_dim": 6, "k_bias": true},
        "content": {"kind": "deberta", "key_term": false, "position_buckets": 10,
        "max_distance": 50}})"};

inline const std::vector<std::string> sliding_window_attention_configs{
    R"({"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rotary_dim": 8,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false,
        "window": 7, "dilation": 1, "n_sinks": 0, "max_rollback": 3})",
    R"({"d_model": 9, "n_heads": 3, "n_kv_heads": 1, "head_dim": 5, "rotary_dim": 2,
        "rope_theta": 100, "rope_interleaved": true, "qkv_bias": true, "o_bias": true,
        "window": 65, "dilation": 1, "n_sinks": 0, "max_rollback": 0})",
    R"({"d_model": 12, "n_heads": 2, "n_kv_heads": 2, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false,
        "window": 300, "dilation": 1, "n_sinks": 0, "max_rollback": 0})",
    R"({"d_model": 12, "n_heads": 2, "n_kv_heads": 2, "head_dim": 7, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false, "soft_cap": 3.0,
        "window": 21, "dilation": 1, "n_sinks": 4, "max_rollback": 0})",
    R"({"d_model": 10, "n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false,
        "window": 1, "dilation": 1, "n_sinks": 70, "max_rollback": 0})",
    R"({"d_model": 13, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rotary_dim": 0,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false, "alibi": true,
        "window": 9, "dilation": 5, "n_sinks": 0, "max_rollback": 2})",
    R"({"d_model": 11, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "value_dim": 4},
        "positions": {"rotary_dim": 6}, "sees": {"window": 13, "n_sinks": 3},
        "scores": {"sink_logits": true}})",
    R"({"d_model": 10, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "value_dim": 4},
        "positions": {"rotary_dim": 6, "remap": "lm_infinite"}, "sees": {"window": 13,
        "n_sinks": 3}, "scores": {"sink_logits": true}})",
    R"({"d_model": 9, "heads": {"n_heads": 2, "head_dim": 4}, "positions": {"rotary_dim": 4,
        "remap": "lm_infinite"}, "sees": {"window": 5, "n_sinks": 80}})"};

/// Vaswani et al. 2017, arXiv:1706.03762, eq. 1 without a mask, or within a window or chunks on
/// both sides, or causal but for a prefix.
template <class S>
Output<S> bidirectional_attention(const Input<S>& parts) {
  const Input<S> in = with_flat_config(parts);
  const Index chunk = in.size("chunk"), prefix = in.size("prefix");
  const std::vector<Index> windows = windows_of_heads(in);
  const SegmentBranches<S> branches(in);
  const auto sees = [&](Index h, Index t, Index j) -> Index {
    if (branches.any()) return branches(h, t, j);
    if (prefix > 0) return j <= t || j < prefix;
    const Index W = windows[static_cast<std::size_t>(h)];
    if (chunk == 0) return W == 0 || std::abs(t - j) < W;
    const Index back = chunks_between(in, h, t, j);
    return -back <= in.size("chunks_ahead") &&
           (in.flag("all_chunks_back") || back <= in.size("chunks_back"));
  };
  Output<S> out{in.x, {}};
  for (Index b = 0; b < in.B(); ++b) {
    const auto unpadded = [&](Index h, Index t, Index j) -> Index {
      const bool marked = !in.flag("key_mask") || in.input("key_mask")(b, j, 0) != 0;
      return marked ? sees(h, t, j) : 0;
    };
    attention_row(in, b, unpadded, out);
  }
  return out;
}

inline const std::vector<std::string> bidirectional_attention_configs{
    R"({"d_model": 16, "n_heads": 4, "n_kv_heads": 4, "head_dim": 4, "rotary_dim": 0,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": true, "o_bias": true})",
    R"({"d_model": 15, "n_heads": 6, "n_kv_heads": 3, "head_dim": 10, "rotary_dim": 6,
        "rope_theta": 100, "rope_interleaved": false, "qkv_bias": false, "qk_norm": "head",
        "soft_cap": 4.0})",
    R"({"d_model": 7, "n_heads": 3, "n_kv_heads": 1, "head_dim": 5, "rotary_dim": 0,
        "rope_theta": 100, "rope_interleaved": false, "qkv_bias": false, "alibi": true,
        "score_scale": 1.0})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4, "qk_norm": "projection",
        "qk_norm_kind": "layer", "qk_norm_bias": true}, "positions": {"rotary_dim": 4},
        "sees": {"window": 11}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4}, "positions": {"rotary_dim": 4},
        "sees": {"chunk": 10, "all_chunks_back": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4}, "sees": {"chunk": 13,
        "chunks_back": 1, "chunks_ahead": 1}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4}, "positions": {"rotary_dim": 4},
        "sees": {"prefix": 21}})",
    R"({"d_model": 9, "n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false,
        "rope_scaling": "dynamic", "rope_factor": 2.0, "rope_original_length": 5,
        "rope_by_call": true})",
    R"({"d_model": 10, "heads": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 8},
        "positions": {"rotary_dim": 8, "given": 3, "rope_sections": [1, 2, 1]},
        "sees": {"window": 13}})",
    R"({"d_model": 8, "heads": {"n_heads": 3, "n_kv_heads": 3, "head_dim": 5}, "bias":
        {"kind": "relative", "max_distance": 9}, "content": {"kind": "cape", "mlp_width": 5},
        "scores": {"normaliser": "entmax15"}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 5},
        "content": {"kind": "transformer_xl", "max_distance": 40}})",
    R"({"d_model": 9, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "q_bias": true},
        "content": {"kind": "deberta", "max_distance": 30, "query_bias": false}})",
    R"({"d_model": 9, "heads": {"n_heads": 4, "n_kv_heads": 4, "n_key_heads": 2, "head_dim": 5},
        "content": {"kind": "deberta", "max_distance": 30, "query_bias": false}})",
    R"({"d_model": 10, "heads": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 7, "k_bias": true},
        "content": {"kind": "deberta", "position_buckets": 12, "max_distance": 64,
        "shared_projections": true}, "sees": {"window": 50}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4}, "positions": {"rotary_dim": 4},
        "scores": {"normaliser": "sigmoid", "normaliser_length": 30}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "o_bias": true},
        "sees": {"window": 30}, "scores": {"normaliser": "geometric", "own_key": "hidden"}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "sees": {"windows": [40, 5]}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "sees": {"segments": [20, 36],
        "segment_dilations": [1, 3]}, "scores": {"sink_logits": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "o_bias": true},
        "positions": {"rotary_dim": 4}, "sees": {"key_mask": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4, "o_bias": true},
        "sees": {"window": 15, "key_mask": true}, "scores": {"normaliser": "sparsemax"}})"};

/// Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3.
template <class S>
Output<S> cross_attention(const Input<S>& parts) {
  const Input<S> in = with_flat_config(parts);
  const HeadCounts<S> of_heads(in);
  const Index B = in.B(), T = in.T(), H = of_heads.H, K = in.size("head_dim");
  const Index V = value_width(in);
  const AttentionScore<S> score_of(in);
  const Array<S>& source = in.input("source");
  const Index length = source.shape[1];
  Output<S> out{in.x, {}};
  Array<S> keys({B, of_heads.keys, length, K}), values({B, of_heads.values, length, V});
  std::vector<Index> seen;
  for (Index s = 0; s < length; ++s) seen.push_back(s);
  for (Index b = 0; b < B; ++b) {
    for (const Index s : seen) {
      const auto one = token(source, b, s);
      const auto map = [&](const char* name) { return TokenHeads<S>::of(in, name, one); };
      const TokenHeads<S> heads(in, {}, map("k"),
                                in.flag("values_are_keys") ? std::vector<S>() : map("v"));
      for (Index g = 0; g < of_heads.keys; ++g) {
        std::copy_n(heads.k.data() + g * K, K, &keys(b, g, s, 0));
      }
      for (Index g = 0; g < of_heads.values; ++g) {
        std::copy_n(heads.v.data() + g * V, V, &values(b, g, s, 0));
      }
    }
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      std::vector<S> q = TokenHeads<S>(in, TokenHeads<S>::of(in, "q", x), {}, {}).q;
      sharpen(in, 0, q);
      std::vector<S> o;
      for (Index h = 0; h < H; ++h) {
        std::vector<S> score;
        std::vector<const S*> value;
        for (const Index s : seen) {
          score.push_back(score_of(q.data() + h * K, &keys(b, of_heads.key_of(h), s, 0), h, 0, 0));
          value.push_back(&values(b, of_heads.value_of(h), s, 0));
        }
        const std::vector<S> head = weighted_values(in, h, 0, seen, score, value, V);
        o.insert(o.end(), head.begin(), head.end());
      }
      set_token(out.y, b, t, project_outputs(in, x, o));
    }
  }
  Array<S> lengths({B});
  for (Index b = 0; b < B; ++b) lengths(b) = static_cast<S>(length);
  out.state = {
      {"keys", keys}, {"keys.length", lengths}, {"values", values}, {"values.length", lengths}};
  return out;
}

inline const std::vector<std::string> cross_attention_configs{
    R"({"d_model": 16, "d_source": 16, "n_heads": 4, "n_kv_heads": 4, "head_dim": 4,
        "q_bias": true, "k_bias": false, "v_bias": true, "o_bias": true, "score_scale": 0})",
    R"({"d_model": 9, "d_source": 13, "n_heads": 6, "n_kv_heads": 2, "head_dim": 7,
        "q_bias": false, "k_bias": true, "v_bias": false, "o_bias": false, "score_scale": 0})",
    R"({"d_model": 5, "d_source": 3, "n_heads": 2, "n_kv_heads": 1, "head_dim": 35,
        "q_bias": false, "k_bias": false, "v_bias": false, "o_bias": false, "score_scale": 0.3})",
    R"({"d_model": 8, "d_source": 6, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 5,
        "value_dim": 3, "qk_norm": "head", "qk_norm_kind": "layer", "qk_norm_bias": true,
        "output_gate": "head"}, "scores": {"soft_cap": 2.0, "sink_logits": true}})",
    R"({"d_model": 7, "d_source": 9, "heads": {"n_heads": 2, "head_dim": 6, "qkv_clip": 0.5,
        "output_norm": "gated_rms"}, "scores": {"normaliser": "entmax15"}})"};

}  // namespace reference
