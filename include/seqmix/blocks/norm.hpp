#pragma once

#include <array>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/detail/check_config.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

enum class NormKind { none, rms, rms_around_one, layer };
constexpr std::array<std::string_view, 4> names_of(NormKind) {
  return {"none", "rms", "rms_around_one", "layer"};
}

/// A norm over the channels of a token, as data.
///
///   rms:             x / sqrt(mean(x²) + eps) ⊙ weight
///   rms_around_one:  x / sqrt(mean(x²) + eps) ⊙ (1 + weight)
///   layer:           (x - mean(x)) / sqrt(var(x) + eps) ⊙ weight + bias
///
/// Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; Gemma's; Ba et al. 2016,
/// arXiv:1607.06450.
template <class S>
struct Norm {
  NormKind kind = NormKind::none;
  Parameter<S, 1> weight = {};  // [D]; empty: what multiplies is 1
  Parameter<S, 1> bias = {};    // [D] of `layer`, or empty: 0
  double eps = 1e-6;            // at least 0

  // g++ 12 ends with an internal error where braces in braces leave a norm out and it has not been
  // asked this before.
  static_assert(std::is_nothrow_default_constructible_v<Parameter<S, 1>> &&
                std::is_nothrow_destructible_v<Parameter<S, 1>>);

  explicit operator bool() const { return kind != NormKind::none; }

  /// Throws `ConfigError` where a field is set that the kind does not read or eps is out of range,
  /// and `ShapeError` where a weight is not [width].
  void check(const std::string& who, Index width) const {
    check_range(who, "eps", eps, at_least(0));
    if (bias && kind != NormKind::layer) throw ConfigError(who + ": a bias needs the kind layer");
    if (weight && !*this) throw ConfigError(who + ": a weight needs a kind, which is none");
    for (const auto& [name, numbers] : {std::pair{"weight", &weight}, std::pair{"bias", &bias}}) {
      if (!*numbers || numbers->shape() == Shape<1>{width}) continue;
      throw ShapeError(who + ": " + name + " has shape " + numbers->shape().text() + ", expected " +
                       Shape<1>{width}.text());
    }
  }
  /// Makes `rms_around_one` the `rms` that it is with 1 + weight.
  void settle() {
    if (kind != NormKind::rms_around_one) return;
    kind = NormKind::rms;
    if (!weight) return;
    Tensor<S, 1> around_zero = weight.to_tensor();
    for (Index i = 0; i < around_zero.size(); ++i) around_zero[i] += S(1);
    weight = std::move(around_zero);
  }

  /// y = norm(x), settled; y may be x.
  template <Index Rank>
  void apply(In<S, Rank> x, View<S, Rank> y, const Call& call) const {
    if (kind == NormKind::layer) {
      layer_norm<S, Rank>(x, weight, bias, eps, y, call);
    } else {
      rms_norm<S, Rank>(x, weight, eps, y, call);
    }
  }

  void list_weights(auto&& body) const {
    for (const auto* const numbers : {&weight, &bias}) body(numbers->identity(), numbers->size());
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
