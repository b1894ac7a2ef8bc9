#pragma once

#include <algorithm>

#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/memory/decay.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What the maximum of `wkv4` is before the first token: e^(this - anything) is 0.
inline constexpr double wkv_initial_maximum = -1e38;

namespace detail {

/// The channels that pass through time together in `wkv4`.
inline constexpr Index wkv_channels = 256;
/// Where there are fewer groups of them than this, they are narrower.
inline constexpr Index wkv_groups = 4;
/// Numbers of a task at least: each costs two exponentials and a quotient.
inline constexpr Index wkv_numbers_per_task = Index{1} << 11;
/// The registers of channels that go through time together.
inline constexpr Index wkv_registers = 4;
/// Tokens that all channels of a task pass before the next ones: their rows are streams that the
/// processor follows, where a few channels of all tokens are pieces far apart.
inline constexpr Index wkv_tokens = 8;

/// The weights e^(a - max(a, b)) and e^(b - max(a, b)): one of them is 1.
template <class S>
struct PairWeights {
  simd::Batch<S> a, b;

  SEQMIX_ALWAYS_INLINE PairWeights(const simd::Batch<S>& of_a, const simd::Batch<S>& of_b) {
    const simd::Batch<S> one(S(1)), smaller = simd::exp(-simd::abs<S>(of_a - of_b));
    const auto a_leads = of_a >= of_b;
    a = simd::select<S>(a_leads, one, smaller), b = simd::select<S>(a_leads, smaller, one);
  }
};

/// One segment, `Width` registers of channels from `channel` on, `lane_count` lanes of each.
template <Index Width, class S>
void wkv4_channels(const View<const S, 2>& k, const View<const S, 2>& v, const S* w, const S* u,
                   S* numerator, S* denominator, S* maximum, const View<S, 2>& o, Index channel,
                   auto lane_count) {
  using Batch = simd::Batch<S>;
  constexpr Index L = simd::lanes<S>;
  Batch num[Width], den[Width], top[Width], decay[Width], bonus[Width];
#pragma GCC unroll 4
  for (Index i = 0; i < Width; ++i) {
    const Index at = channel + i * L;
    num[i] = simd::load<S>(numerator + at, lane_count);
    den[i] = simd::load<S>(denominator + at, lane_count);
    top[i] = simd::load<S>(maximum + at, lane_count);
    decay[i] = simd::load<S>(w + at, lane_count), bonus[i] = simd::load<S>(u + at, lane_count);
  }
  for (Index t = 0; t < o.extent(0); ++t) {
#pragma GCC unroll 4
    for (Index i = 0; i < Width; ++i) {
      const Index at = channel + i * L;
      const Batch key = simd::load<S>(&k(t, at), lane_count);
      const Batch value = simd::load<S>(&v(t, at), lane_count);
      const PairWeights<S> read(top[i], bonus[i] + key);
      const Batch sum = simd::fma<S>(read.a, num[i], read.b * value);
      simd::store<S>(&o(t, at), sum / simd::fma<S>(read.a, den[i], read.b), lane_count);

      const Batch past = top[i] + decay[i];
      const PairWeights<S> write(past, key);
      num[i] = simd::fma<S>(write.a, num[i], write.b * value);
      den[i] = simd::fma<S>(write.a, den[i], write.b);
      top[i] = simd::max<S>(past, key);
    }
  }
#pragma GCC unroll 4
  for (Index i = 0; i < Width; ++i) {
    const Index at = channel + i * L;
    simd::store<S>(numerator + at, simd::flush_subnormal<S>(num[i]), lane_count);
    simd::store<S>(denominator + at, den[i], lane_count);
    simd::store<S>(maximum + at, top[i], lane_count);
  }
}

}  // namespace detail

/// The weighted mean of values of RWKV-4, each channel on its own:
///
///   o_t = (Σ_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)
///
/// k, v, o: [T, D]; w, u: [D], w <= 0 the log decay of a token and u what the current one gains.
/// The sums are kept as num e^max and den e^max: three states [B, D], whose rows the segments read,
/// then advance; the maximum starts at `wkv_initial_maximum`. den is at least 1 after the first
/// token; what is below the smallest normal number of num becomes zero. The bits depend on nothing
/// but the channel: any cut gives the same ones.
template <class S>
void wkv4(In<S, 2> k, In<S, 2> v, In<S, 1> w, In<S, 1> u, Out<S, 2> numerator,
          Out<S, 2> denominator, Out<S, 2> maximum, View<S, 2> o, const Call& call) {
  const Index T = o.extent(0), D = o.extent(1), B = numerator.extent(0);
  const Expect expect{"wkv4"};
  expect.rows("k", k, {T, D}), expect.rows("v", v, {T, D}), expect.rows("o", o, {T, D});
  expect.rows("w", w, {D}), expect.rows("u", u, {D});
  expect.rows("numerator", numerator, {B, D}), expect.rows("denominator", denominator, {B, D});
  expect.rows("maximum", maximum, {B, D});
  if (o.empty()) return;

  constexpr Index L = simd::lanes<S>, tile = detail::wkv_registers * L;
  const auto channels_of = [&](const Segment& segment) {
    const Index wanted = share_of(call, segment, detail::wkv_groups);
    return std::min(round_up(ceil_div(D, wanted), tile), detail::wkv_channels);
  };
  const auto work_of = [&](const Segment& segment) {
    const Index channels = channels_of(segment);
    return SegmentWork{ceil_div(D, channels), segment.count * std::min(channels, D)};
  };
  for_each_unit(call, detail::wkv_numbers_per_task, work_of, [&](const Unit& unit, const Call&) {
    const Index channels = channels_of(unit.segment), row = unit.row();
    const Index first = unit.item * channels, end = std::min(D, first + channels);
    for (Index t = 0; t < unit.tokens(); t += detail::wkv_tokens) {
      const auto tokens = [&](const auto& view) {
        return view.slice(axis::time, unit.segment.first + t,
                          std::min(detail::wkv_tokens, unit.tokens() - t));
      };
      const auto run = [&]<Index Width>(std::integral_constant<Index, Width>, Index channel,
                                        auto lane_count) {
        detail::wkv4_channels<Width, S>(tokens(k), tokens(v), w.data(), u.data(),
                                        &numerator(row, 0), &denominator(row, 0), &maximum(row, 0),
                                        tokens(o), channel, lane_count);
      };
      Index channel = first;
      for (; channel + tile <= end; channel += tile) {
        run(std::integral_constant<Index, detail::wkv_registers>{}, channel, simd::Full<S>{});
      }
      simd::for_each_block<S>(end - channel, [&](Index offset, auto lane_count) {
        run(std::integral_constant<Index, 1>{}, channel + offset, lane_count);
      });
    }
  });
}

/// o += (Σ_j r_j u_j k_j) v for each head: the current token's own share. r, k, v, o: [T, H, N];
/// u: [H, N].
template <class S>
void add_bonus(In<S, 3> r, In<S, 2> u, In<S, 3> k, In<S, 3> v, View<S, 3> o, const Call& call) {
  const Index T = o.extent(0), H = o.extent(1), N = o.extent(2);
  Expect{"add_bonus"}.shape("u", u, {H, N});
  const View<const S, 3> weights(u.data(), {T, H, N}, {0, u.stride(0), u.stride(1)});
  for_each_row(
      call,
      [N](S* out, const S* receptance, const S* weight, const S* key, const S* value) {
        detail::add_own_share<S>(N, N, receptance, weight, key, value, out);
      },
      o, r, weights, k, v);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
