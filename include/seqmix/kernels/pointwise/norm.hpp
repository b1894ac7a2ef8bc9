#pragma once

#include <algorithm>
#include <cmath>

#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <class S>
S sum_of_squares(const S* x, Index count) {
  return sum_of<S>(
      count, [](auto v) { return v * v; }, x);
}
/// 1 / sqrt(mean(x²) + eps).
template <class S>
S inverse_rms(const S* x, Index count, double eps) {
  return S(1) / std::sqrt(sum_of_squares(x, count) / static_cast<S>(count) + static_cast<S>(eps));
}

inline void check_group(std::string_view kernel, Index width, Index group) {
  if (group <= 0 || width % group != 0) {
    throw ShapeError(std::string(kernel) + ": rows of " + std::to_string(width) +
                     " do not divide into groups of " + std::to_string(group));
  }
}

}  // namespace detail

/// x = x / sqrt(mean(x²) + eps) ⊙ weight over the last axis. Zhang & Sennrich 2019,
/// arXiv:1910.07467, eq. 4. y may be x. An empty weight: 1.
template <class S, Index Rank>
void rms_norm(In<S, Rank> x, In<S, 1> weight, double eps, View<S, Rank> y, const Call& call) {
  const Index width = y.extent(axis::channel);
  const bool weighted = weight.data() != nullptr;
  if (weighted) Expect{"rms_norm"}.rows("weight", weight, {width});
  for_each_row(
      call,
      [&](S* to, const S* from) {
        const S scale = detail::inverse_rms(from, width, eps);
        const auto norm = [scale](auto v, auto w) { return v * scale * w; };
        const auto scaled = [scale](auto v) { return v * scale; };
        if (weighted) return simd::map<S>(width, to, norm, from, weight.data());
        simd::map<S>(width, to, scaled, from);
      },
      y, x);
}

/// x = rms_norm(x) ⊙ f(gate), the norm first; f is one of `activation`.
template <class S, Index Rank>
void gated_rms_norm(View<S, Rank> x, In<S, Rank> gate, In<S, 1> weight, double eps, auto f,
                    const Call& call) {
  const Index width = x.extent(axis::channel);
  Expect{"gated_rms_norm"}.rows("weight", weight, {width});
  for_each_row(
      call,
      [&](S* row, const S* by) {
        const S scale = detail::inverse_rms(row, width, eps);
        const auto norm = [scale, f](auto v, auto w, auto g) { return v * scale * w * f(g); };
        simd::map<S>(width, row, norm, row, weight.data(), by);
      },
      x, gate);
}

/// x = rms_norm(x) ⊙ σ(gate ⊙ x), a row its own gate. Zhang et al. 2021, arXiv:2104.07012, eq. 6.
template <class S, Index Rank>
void self_gated_rms_norm(View<S, Rank> x, In<S, 1> weight, In<S, 1> gate, double eps,
                         const Call& call) {
  const Index width = x.extent(axis::channel);
  const Expect expect{"self_gated_rms_norm"};
  expect.rows("weight", weight, {width}), expect.rows("gate", gate, {width});
  for_each_row(
      call,
      [&](S* row) {
        const S scale = detail::inverse_rms(row, width, eps);
        const auto norm = [scale](auto v, auto w, auto g) {
          return v * scale * w * activation::sigmoid(g * v);
        };
        simd::map<S>(width, row, norm, row, weight.data(), gate.data());
      },
      x);
}

/// x = rms_norm(x ⊙ silu(gate)), the gate first, each `group` numbers of a row on their own.
template <class S, Index Rank>
void rms_norm_of_gated(View<S, Rank> x, In<S, Rank> gate, In<S, 1> weight, Index group, double eps,
                       const Call& call) {
  const Index width = x.extent(axis::channel);
  Expect{"rms_norm_of_gated"}.rows("weight", weight, {width});
  detail::check_group("rms_norm_of_gated", width, group);
  for_each_row(
      call,
      [&](S* row, const S* by) {
        simd::map<S>(
            width, row, [](auto v, auto g) { return v * activation::silu(g); }, row, by);
        for (Index first = 0; first < width; first += group) {
          const S scale = detail::inverse_rms(row + first, group, eps);
          const auto norm = [scale](auto v, auto w) { return v * scale * w; };
          simd::map<S>(group, row + first, norm, row + first, weight.data() + first);
        }
      },
      x, gate);
}

/// y = (x - mean) / sqrt(variance + eps) ⊙ weight + bias, each `group` numbers of a row on their
/// own. Wu & He 2018, arXiv:1803.08494, with the groups of one token. Empty weight and bias: 1 and
/// 0.
template <class S, Index Rank>
void group_norm(In<S, Rank> x, In<S, 1> weight, In<S, 1> bias, Index group, double eps,
                View<S, Rank> y, const Call& call) {
  const Index width = y.extent(axis::channel);
  detail::check_group("group_norm", width, group);
  const Expect expect{"group_norm"};
  if (weight.data() != nullptr) expect.rows("weight", weight, {width});
  if (bias.data() != nullptr) expect.rows("bias", bias, {width});
  for_each_row(
      call,
      [&](S* to, const S* from) {
        for (Index first = 0; first < width; first += group) {
          const S* in = from + first;
          S* out = to + first;
          const S mean = detail::sum_of<S>(
                             group, [](auto v) { return v; }, in) /
                         static_cast<S>(group);
          simd::map<S>(
              group, out, [mean](auto v) { return v - mean; }, in);
          const S scale = detail::inverse_rms(out, group, eps);
          if (weight.data() != nullptr && bias.data() != nullptr) {
            const auto norm = [scale](auto v, auto w, auto c) {
              return simd::fma(v * scale, w, c);
            };
            simd::map<S>(group, out, norm, out, weight.data() + first, bias.data() + first);
            continue;
          }
          simd::map<S>(
              group, out, [scale](auto v) { return v * scale; }, out);
          if (weight.data() != nullptr) {
            simd::map<S>(
                group, out, [](auto v, auto w) { return v * w; }, out, weight.data() + first);
          }
          if (bias.data() != nullptr) {
            simd::map<S>(
                group, out, [](auto v, auto b) { return v + b; }, out, bias.data() + first);
          }
        }
      },
      y, x);
}

/// `group_norm` of one group: the whole row. Ba et al. 2016, arXiv:1607.06450.
template <class S, Index Rank>
void layer_norm(In<S, Rank> x, In<S, 1> weight, In<S, 1> bias, double eps, View<S, Rank> y,
                const Call& call) {
  group_norm<S, Rank>(x, weight, bias, std::max<Index>(y.extent(axis::channel), 1), eps, y, call);
}

/// x = x / sqrt(Σ x² + eps) over the last axis.
template <class S, Index Rank>
void l2_norm(View<S, Rank> x, double eps, const Call& call) {
  const Index width = x.extent(axis::channel);
  for_each_row(
      call,
      [&](S* row) {
        const S scale = S(1) / std::sqrt(detail::sum_of_squares(row, width) + static_cast<S>(eps));
        simd::map<S>(
            width, row, [scale](auto v) { return v * scale; }, row);
      },
      x);
}

/// x = x / max(sqrt(Σ x²), least) over the last axis, as torch.nn.functional.normalize.
template <class S, Index Rank>
void clamped_l2_norm(View<S, Rank> x, double least, const Call& call) {
  const Index width = x.extent(axis::channel);
  for_each_row(
      call,
      [&](S* row) {
        const S length =
            std::max(std::sqrt(detail::sum_of_squares(row, width)), static_cast<S>(least));
        simd::map<S>(
            width, row, [length](auto v) { return v / length; }, row);
      },
      x);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
