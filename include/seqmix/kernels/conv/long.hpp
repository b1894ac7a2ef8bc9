#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/transform/fft.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// The spectrum of a filter as a cyclic convolution of `length` numbers needs it.
///
/// With z_j = u_{2j} + i u_{2j+1} and E, O the transforms of the even and the odd taps, the product
/// is Z'_k = Z_k (E + i s F) + conj(Z_{-k}) c F, where F = i O exp(-iθ), c + i s = exp(iθ) and
/// θ = π k / points: the transform of the real numbers themselves is never formed.
template <class S>
class LongSpectrum {
 public:
  /// taps: [L, channels padded to lanes], of which the first `most` count, half of `length` unless
  /// given.
  LongSpectrum(const View<const S, 2>& taps, Index length)
      : LongSpectrum(taps, length, length / 2) {}
  LongSpectrum(const View<const S, 2>& taps, Index length, Index most)
      : plan_(length), taps_(std::min(taps.extent(0), most)) {
    constexpr Index lanes = simd::lanes<S>, width = FftPlan<S>::width;
    const Index points = plan_.points(), entries = points / 2 + 1;
    turns_ = Tensor<S, 2>({entries, 2});
    pairs_ = Tensor<S, 4>({taps.extent(1) / lanes, entries, 2, width});
    Tensor<S, 2> z({points, width});
    const S scale = S(1) / static_cast<S>(points), half = scale / 2;
    for (Index block = 0; block < pairs_.extent(0); ++block) {
      for (Index l = 0; l < length; ++l) {
        for (Index lane = 0; lane < lanes; ++lane) {
          z(l / 2, l % 2 * lanes + lane) = l < taps_ ? taps(l, block * lanes + lane) : S(0);
        }
      }
      plan_.forward(z.data());
      for (Index entry = 0; entry < entries; ++entry) {
        const Index k = plan_.frequency(plan_.position(entry));
        const double angle =
            std::numbers::pi * static_cast<double>(k) / static_cast<double>(points);
        const S c = static_cast<S>(std::cos(angle)), s = static_cast<S>(std::sin(angle));
        turns_(entry, 0) = c, turns_(entry, 1) = s;
        const View<const S, 1> a = z.view()[plan_.frequency(k)];
        const View<const S, 1> b = z.view()[plan_.frequency((points - k) % points)];
        for (Index lane = 0; lane < lanes; ++lane) {
          const S a_re = a[lane], a_im = a[lanes + lane], b_re = b[lane], b_im = b[lanes + lane];
          // E = (a + conj b) / 2, i O = (a - conj b) / 2
          pairs_(block, entry, 0, lane) = half * (a_re + b_re);
          pairs_(block, entry, 0, lanes + lane) = half * (a_im - b_im);
          const S o_re = half * (a_re - b_re), o_im = half * (a_im + b_im);
          pairs_(block, entry, 1, lane) = o_re * c + o_im * s;
          pairs_(block, entry, 1, lanes + lane) = o_im * c - o_re * s;
        }
      }
    }
  }

  const FftPlan<S>& plan() const { return plan_; }
  /// How many taps it holds: all of the filter's, or as many as may count.
  Index taps() const { return taps_; }
  /// The tokens that one transform can give: the others wrap around.
  Index tokens() const { return plan_.length() - taps_ + 1; }

  /// The rows `out` of the cyclic convolution of `in` with the taps of one block of channels.
  void filter(Index block, const typename FftPlan<S>::template Rows<const S>& in,
              const typename FftPlan<S>::template Rows<S>& out, S* z) const {
    const S* const spectrum = &pairs_(block, 0, 0, 0);
    plan_.filter(in, out, z, [&](S* a, S* b, Index entry, Index count) {
      constexpr Index width = FftPlan<S>::width;
      const S* turn = &turns_(entry, 0);
      const S* pair = spectrum + entry * 2 * width;
      for (; count > 0; --count, a += width, b -= width, turn += 2, pair += 2 * width) {
        const auto c = simd::broadcast(turn[0]), s = simd::broadcast(turn[1]);
        const auto x = load_complex<S>(a), y = load_complex<S>(b);
        const auto e = load_complex<S>(pair), f = load_complex<S>(pair + width);
        // u = i s x + c conj(y), v = i s conj(y) + c x
        const auto u_re = simd::fnma(s, x.im, c * y.re), u_im = simd::fnma(c, y.im, s * x.re);
        const auto v_re = simd::fma(s, y.im, c * x.re), v_im = simd::fma(s, y.re, c * x.im);
        // x' = x E + u F, conj(y') = conj(y) E - v F
        const auto x_re = simd::fnma(x.im, e.im, x.re * e.re);
        const auto x_im = simd::fma(x.re, e.im, x.im * e.re);
        const auto y_re = simd::fma(y.im, e.im, y.re * e.re);
        const auto y_im = simd::fnma(y.re, e.im, y.im * e.re);
        store_complex<S>(a, {simd::fnma(u_im, f.im, simd::fma(u_re, f.re, x_re)),
                             simd::fma(u_re, f.im, simd::fma(u_im, f.re, x_im))});
        store_complex<S>(b, {simd::fma(v_im, f.im, simd::fnma(v_re, f.re, y_re)),
                             simd::fma(v_re, f.im, simd::fma(v_im, f.re, y_im))});
      }
    });
  }

 private:
  FftPlan<S> plan_;
  Index taps_;
  Tensor<S, 2> turns_;  // [entries, 2]: cos θ, sin θ
  Tensor<S, 4> pairs_;  // [blocks of lanes, entries, {E, F} / points, {re, im} of all lanes]
};

}  // namespace detail

/// An immutable long filter, taps [D, L], with its spectra for inputs of any length. Copies share.
///
/// Memory: the taps and, for each power of two n from 64 to twice the taps rounded up (four times
/// for short filters, to at most 8192), n + 4 numbers a channel: 4 to 8 times the taps where L is
/// long.
template <class S>
class LongFilter {
 public:
  explicit LongFilter(In<S, 2> taps) {
    const Index D = taps.extent(0), L = taps.extent(1);
    if (L < 1) {
      throw ShapeError("LongFilter: taps have shape " + taps.shape().text() +
                       ", expected [D, L] with at least one tap");
    }
    auto data = std::make_shared<Data>();
    data->channels = D;
    data->taps = Tensor<S, 2>({L, round_up(D, simd::lanes<S>)});
    for (Index l = 0; l < L; ++l) {
      for (Index d = 0; d < D; ++d) data->taps(l, d) = taps(d, l);
    }
    const auto span = static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(L)));
    const Index longest = std::max({Index{64}, 2 * span, std::min<Index>(4 * span, 8192)});
    for (Index length = 64; length <= longest; length *= 2) {
      data->spectra.emplace_back(std::as_const(data->taps).view(), length);
    }
    data_ = std::move(data);
  }

  Index channels() const { return data_->channels; }
  Index length() const { return data_->taps.extent(0); }
  /// [L, D padded to lanes], the padding zero.
  View<const S, 2> taps() const { return data_->taps; }
  /// Of ascending length.
  const std::vector<detail::LongSpectrum<S>>& spectra() const { return data_->spectra; }

 private:
  struct Data {
    Index channels = 0;
    Tensor<S, 2> taps;
    std::vector<detail::LongSpectrum<S>> spectra;
  };
  std::shared_ptr<const Data> data_;
};

namespace detail {

/// One segment of a long convolution: tokens [0, past) are history, the others are new.
template <class S>
struct LongInput {
  View<const S, 2> history;  // [capacity, D]
  View<const S, 2> u;        // [T, D]
  Index past;

  Index tokens() const { return past + u.extent(0); }
  const S* row(Index token) const {
    return token < past ? history.data() + token * history.stride(0)
                        : u.data() + (token - past) * u.stride(0);
  }
  /// Copies up to `lanes` channels of the tokens from `first` on to adjacent rows of `lanes`
  /// numbers; lanes without a channel and tokens that do not exist are 0.
  void pack(Index first, Index channel, const View<S, 2>& to) const {
    const Index count = std::min(simd::lanes<S>, u.extent(1) - channel);
    for (Index r = 0; r < to.extent(0); ++r) {
      const bool exists = first + r >= 0 && first + r < tokens();
      simd::store<S>(&to(r, 0), exists ? simd::load<S>(row(first + r) + channel, count)
                                       : simd::Batch<S>(S(0)));
    }
  }
};

/// The spectrum that convolves `tokens` new tokens fastest, or null where the direct sums should.
///
/// The one place that weighs the algorithms. Cost: multiply-adds of registers for the direct sums,
/// for n log2(n) of a transform their measured equivalent.
template <class S>
const LongSpectrum<S>* choose_spectrum(const LongFilter<S>& filter, Index past, Index tokens,
                                       Algorithm algorithm) {
  constexpr double transform_cost = 3.5;
  if (algorithm == Algorithm::recurrent) return nullptr;
  const Index reach = std::min(filter.length(), past + tokens);
  const LongSpectrum<S>* best = nullptr;
  double best_cost = 0;
  for (const LongSpectrum<S>& spectrum : filter.spectra()) {
    if (spectrum.taps() < reach) continue;
    const auto length = static_cast<double>(spectrum.plan().length());
    const double cost = static_cast<double>(ceil_div(tokens, spectrum.tokens())) * length *
                        std::log2(length) * transform_cost;
    if (best == nullptr || cost < best_cost) best = &spectrum, best_cost = cost;
  }
  if (algorithm == Algorithm::automatic) {
    const Index first_reach = std::min(filter.length(), past + 1);
    const double direct =
        static_cast<double>(tokens) * static_cast<double>(first_reach + reach) / 2;
    if (direct <= best_cost) return nullptr;
  }
  return best;
}

/// y [T, D] of one block of channels by transforms, the last tokens first: then y may be u.
template <class S>
void transform_sums(const LongInput<S>& input, const LongSpectrum<S>& spectrum, Index block,
                    const View<S, 2>& y, const Call& call) {
  constexpr Index lanes = simd::lanes<S>;
  const Index channel = block * lanes, count = std::min(lanes, y.extent(1) - channel);
  auto scratch = call.scratch<S>();
  const auto z = scratch(spectrum.plan().points(), FftPlan<S>::width);
  const Index step = spectrum.tokens();
  for (Index piece = ceil_div(y.extent(0), step); piece-- > 0;) {
    auto rows = call.scratch<S>();
    const Index first = input.past + piece * step;
    const Index tokens = std::min(step, input.tokens() - first);
    const Index begin = std::max<Index>(first - (spectrum.taps() - 1), 0);
    typename FftPlan<S>::template Rows<const S> in{input.row(begin) + channel, input.u.stride(0), 0,
                                                   first + tokens - begin};
    if (count < lanes || begin < input.past) {
      const auto packed = rows(in.count, lanes);
      input.pack(begin, channel, packed);
      in.data = packed.data(), in.stride = lanes;
    }
    const View<S, 2> to = y.slice(axis::time, piece * step, tokens);
    if (count == lanes) {
      spectrum.filter(block, in, {to.data() + channel, to.stride(0), first - begin, tokens},
                      z.data());
    } else {
      const auto packed = rows(tokens, lanes);
      spectrum.filter(block, in, {packed.data(), lanes, first - begin, tokens}, z.data());
      for (Index t = 0; t < tokens; ++t) std::copy_n(&packed(t, 0), count, &to(t, channel));
    }
  }
}

/// y [T, D] of one block of channels by direct sums, the last tokens first: then y may be u.
template <class S>
void direct_sums(const LongInput<S>& input, const View<const S, 2>& taps, Index block,
                 const View<S, 2>& y, const Call& call) {
  using Batch = simd::Batch<S>;
  constexpr Index lanes = simd::lanes<S>, tile = 8, chunk = 32 * tile;
  const Index channel = block * lanes, count = std::min(lanes, y.extent(1) - channel);
  const Index reach = std::min(taps.extent(0), input.tokens());
  auto scratch = call.scratch<S>();
  const auto h = scratch(reach, lanes);
  for (Index l = 0; l < reach; ++l) simd::store(&h(l, 0), simd::load(&taps(l, channel)));
  const auto rows = scratch(reach - 1 + std::min(round_up(y.extent(0), tile), chunk), lanes);
  for (Index end = y.extent(0); end > 0;) {
    const Index begin = (end - 1) / chunk * chunk;
    input.pack(input.past + begin - (reach - 1), channel, rows);
    for (Index t = begin; t < end; t += tile) {
      const S* newest = &rows(reach - 1 + t - begin, 0);
      const Index terms = std::min(reach, input.past + t + tile);
      Batch sum[tile];
      unrolled<tile>([&](auto i) { sum[i] = Batch(S(0)); });
      for (Index l = 0; l < terms; ++l) {
        const Batch tap = simd::load(&h(l, 0));
        unrolled<tile>(
            [&](auto i) { sum[i] = simd::fma(tap, simd::load(newest + (i - l) * lanes), sum[i]); });
      }
      unrolled<tile>([&](auto i) {
        if (t + i < end) simd::store(&y(t + i, channel), sum[i], count);
      });
    }
    end = begin;
  }
}

/// y [width] of one new token for the channels from `channel` on, by one direct sum.
template <class S>
void direct_sum(const LongInput<S>& input, const View<const S, 2>& taps, Index channel, Index width,
                S* y, const Call& call) {
  using Batch = simd::Batch<S>;
  auto scratch = call.scratch<S>();
  const auto sum = scratch(width);
  fill(sum, 0);
  const Index token = input.past, reach = std::min(taps.extent(0), input.tokens());
  const auto tap = [&](Index l) { return &taps(l, channel); };
  const auto row = [&](Index l) { return input.row(token - l) + channel; };
  const auto add = [](Batch s, Batch h, Batch x) { return simd::fma(h, x, s); };
  Index l = 0;
  for (; l + 4 <= reach; l += 4) {
    const auto add_four = [&](Batch s, Batch h0, Batch x0, Batch h1, Batch x1, Batch h2, Batch x2,
                              Batch h3, Batch x3) {
      return add(add(add(add(s, h0, x0), h1, x1), h2, x2), h3, x3);
    };
    simd::map<S>(width, sum.data(), add_four, std::as_const(sum).data(), tap(l), row(l), tap(l + 1),
                 row(l + 1), tap(l + 2), row(l + 2), tap(l + 3), row(l + 3));
  }
  for (; l < reach; ++l) simd::map<S>(width, sum.data(), add, sum.data(), tap(l), row(l));
  std::copy_n(sum.data(), width, y);
}

/// The channels of a unit of work by direct sums of a single token: rows that are long enough to be
/// read ahead.
inline constexpr Index direct_channels = 256;
/// Multiply-adds of numbers that are worth a task.
inline constexpr Index convolution_cost_per_task = Index{1} << 15;

/// How one segment of a long convolution is computed, and cut into units.
template <class S>
struct LongConvPlan {
  const LongSpectrum<S>* spectrum;  // null: direct sums
  Index channels;                   // of a unit
  SegmentWork work;

  LongConvPlan(const LongFilter<S>& filter, const Segment& segment, Index past, Algorithm algorithm)
      : spectrum(segment.form == Form::recurrent
                     ? nullptr
                     : choose_spectrum(filter, past, segment.count, algorithm)),
        channels(spectrum == nullptr && segment.count == 1 ? direct_channels : simd::lanes<S>) {
    constexpr Index transform_cost = 32;  // of a number, log2(n) included: about
    const Index multiply_adds =
        spectrum == nullptr ? segment.count * std::min(filter.length(), past + segment.count)
                            : ceil_div(segment.count, spectrum->tokens()) *
                                  spectrum->plan().length() * transform_cost;
    work = {ceil_div(filter.channels(), channels), channels * multiply_adds};
  }
};

/// y [T, D] of the channels [channel, channel + width), a unit of the plan.
template <class S>
void long_conv_unit(const LongInput<S>& input, const LongFilter<S>& filter,
                    const LongConvPlan<S>& plan, Index channel, Index width, const View<S, 2>& y,
                    const Call& call) {
  const Index block = channel / simd::lanes<S>;
  if (plan.spectrum != nullptr) {
    transform_sums(input, *plan.spectrum, block, y, call);
  } else if (y.extent(axis::time) > 1) {
    direct_sums(input, filter.taps(), block, y, call);
  } else {
    direct_sum(input, filter.taps(), channel, width, y.data() + channel, call);
  }
}

/// Checks the shapes that the kernels of long convolutions have in common. `history` has any number
/// of tokens.
template <class S>
void check_long_conv(const View<const S, 2>& u, const View<const S, 3>& history,
                     const View<const Index, 1>& past, const LongFilter<S>& filter,
                     const View<S, 2>& y) {
  const Index D = filter.channels(), B = history.extent(axis::row);
  const Expect expect{"long_conv"};
  expect.rows("y", y, {y.extent(axis::time), D}), expect.rows("u", u, y.shape());
  expect.rows("history", history, {B, history.extent(1), D}), expect.shape("past", past, {B});
}

/// Long convolutions of all segments; `input_of(segment)` gives the input of one.
template <class S>
void long_conv_of(auto&& input_of, const LongFilter<S>& filter, const View<S, 2>& y,
                  const Call& call) {
  const auto plan_of = [&](const Segment& segment) {
    return LongConvPlan<S>(filter, segment, input_of(segment).past, call.algorithm());
  };
  const auto work_of = [&](const Segment& segment) { return plan_of(segment).work; };
  for_each_unit(call, convolution_cost_per_task, work_of,
                [&](const Unit& unit, const Call& worker) {
                  const LongConvPlan<S> plan = plan_of(unit.segment);
                  const Index channel = unit.item * plan.channels;
                  long_conv_unit<S>(input_of(unit.segment), filter, plan, channel,
                                    std::min(plan.channels, filter.channels() - channel),
                                    unit.tokens_of(y), worker);
                });
}

}  // namespace detail

/// y_t = Σ_{l < L} h[l] u_{t-l} over past[b] tokens of history and those of u, for each segment, b
/// its row, and channel; y [T, D] gets the new tokens. The history stays as it is.
///
/// u: [T, D]. history: [B, capacity, D], valid up to past [B] of each row. y may be u.
/// Direct sums, O(T (past + T)), are one chain of fma over ascending l, whatever T. Transforms,
/// O(n log n) with n about 2 (past + T), agree with them to c eps log2(n) |h| |u|. Recurrent
/// segments take direct sums, those of one token at the speed of memory. For the others the call's
/// algorithm names one (recurrent: direct, chunked: transform), else their past and tokens choose.
template <class S>
void long_conv_continue(In<S, 2> u, In<S, 3> history, In<Index, 1> past,
                        const LongFilter<S>& filter, View<S, 2> y, const Call& call) {
  detail::check_long_conv<S>(u, history, past, filter, y);
  if (y.empty()) return;
  for (const Segment& segment : call.segments()) {
    const Index seen = past[segment.row];
    if (seen >= 0 && seen <= history.extent(1)) continue;
    throw ShapeError("long_conv: " + std::to_string(seen) + " past tokens of row " +
                     std::to_string(segment.row) + " in a history of " + history.shape().text());
  }
  const auto input_of = [&](const Segment& segment) {
    const Unit unit{segment, 0};
    return detail::LongInput<S>{unit.row_of(history), unit.tokens_of(u), past[segment.row]};
  };
  detail::long_conv_of<S>(input_of, filter, y, call);
}

/// `long_conv_continue` without history: y_t = Σ_{l <= t} h[l] u_{t-l}.
template <class S>
void long_conv(In<S, 2> u, const LongFilter<S>& filter, View<S, 2> y, const Call& call) {
  const Index D = y.extent(axis::channel);
  detail::check_long_conv<S>(u, View<const S, 3>(nullptr, {0, 0, D}), View<const Index, 1>(),
                             filter, y);
  if (y.empty()) return;
  const auto input_of = [&](const Segment& segment) {
    return detail::LongInput<S>{View<const S, 2>(nullptr, {0, D}), Unit{segment, 0}.tokens_of(u),
                                0};
  };
  detail::long_conv_of<S>(input_of, filter, y, call);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
