#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "seqmix/core/call.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What a short convolution applies to its sums.
enum class ShortConvActivation { none, silu };

namespace detail {

/// The channels and the tokens that one task of `short_conv` handles: rows that are long enough to
/// be read ahead, and few tokens before the task's own that must be kept.
inline constexpr Index short_conv_channels = 1024, short_conv_chunk = 256;
/// Where threads have fewer tasks than this, a task takes fewer channels, but not fewer than these.
inline constexpr Index short_conv_tasks = 4, short_conv_least_channels = 256;
/// The tokens whose sums are formed together: each input is loaded once for all of them.
inline constexpr Index short_conv_tokens = 4;

/// `Tokens` outputs from token `first` on, `width` channels. `row(s)` is the input of token s; it
/// is history where s < 0. `Taps` is their number, or 0 where only run time knows it.
template <Index Taps, bool Silu, Index Tokens, class S>
void short_conv_tile(Index width, Index first, auto&& row, const View<const S, 2>& taps,
                     const S* bias, const View<S, 2>& y) {
  using Batch = simd::Batch<S>;
  const Index count = Taps > 0 ? Taps : taps.extent(0);
  const auto tokens = std::make_integer_sequence<Index, Tokens>{};
  std::array<const S*, static_cast<std::size_t>(Taps > 0 ? Tokens + Taps - 1 : 1)> rows;
  if constexpr (Taps > 0) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] = row(first - (Taps - 1) + static_cast<Index>(i));
    }
  }
  const auto input = [&](Index s) {
    if constexpr (Taps > 0) {
      return rows[static_cast<std::size_t>(s + Taps - 1)];
    } else {
      return row(first + s);
    }
  };
  simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
    [&]<Index... t>(std::integer_sequence<Index, t...>) {
      const Batch start = bias != nullptr ? simd::load<S>(bias + i, lane_count) : Batch(S(0));
      std::array<Batch, static_cast<std::size_t>(Tokens)> sum{((void)t, start)...};
      for (Index tap = 0; tap < count; ++tap) {
        const Batch weight = simd::load<S>(&taps(tap, i), lane_count);
        ((sum[t] = simd::fma(weight, simd::load<S>(input(t + tap - (count - 1)) + i, lane_count),
                             sum[t])),
         ...);
      }
      if constexpr (Silu) ((sum[t] = simd::silu(sum[t])), ...);
      (simd::store<S>(&y(first + t, i), sum[t], lane_count), ...);
    }
    (tokens);
  });
}

/// All tokens of a chunk, the last first: then y may be x.
template <Index Taps, bool Silu, class S>
void short_conv_chunk_of(Index width, auto&& row, const View<const S, 2>& taps, const S* bias,
                         const View<S, 2>& y) {
  Index end = y.extent(0);
  for (; end >= short_conv_tokens; end -= short_conv_tokens) {
    short_conv_tile<Taps, Silu, short_conv_tokens>(width, end - short_conv_tokens, row, taps, bias,
                                                   y);
  }
  for (; end > 0; --end) short_conv_tile<Taps, Silu, 1>(width, end - 1, row, taps, bias, y);
}

}  // namespace detail

/// y_t = f(bias + Σ_w taps[w] x_{t-(W-1)+w}) for each channel: the last tap meets the current
/// token.
///
/// x, y: [T, D]. taps: [W, D], a checkpoint's [D, 1, W] transposed. bias: [D], or empty. history:
/// [B, W-1, D], the last inputs, oldest first, whose rows the segments read, then advance. The sum
/// is one chain of fma, bias first, then ascending w, so that any cut of a sequence gives the same
/// bits. y may be x.
template <class S>
void short_conv(In<S, 2> x, In<S, 2> taps, In<S, 1> bias, ShortConvActivation activation,
                Out<S, 3> history, View<S, 2> y, const Call& call) {
  const Index T = y.extent(0), D = y.extent(1), W = taps.extent(0);
  const auto check = [D](const char* which, const auto& view, const auto& expected) {
    if (view.shape() != expected || (D > 1 && view.stride(axis::channel) != 1)) {
      throw ShapeError(std::string("short_conv: ") + which + " has shape " + view.shape().text() +
                       ", expected " + expected.text() + ", the last dimension contiguous");
    }
  };
  check("x", x, Shape<2>{T, D});
  check("y", y, Shape<2>{T, D});
  check("taps", taps, Shape<2>{std::max<Index>(W, 1), D});
  if (bias.data() != nullptr) check("bias", bias, Shape<1>{D});
  check("history", history, Shape<3>{history.extent(0), W - 1, D});
  if (y.empty()) return;

  // Of a segment that has more than one chunk, what comes before each of them: x may be gone when
  // the next one needs the end of this one, and the last one advances the history.
  constexpr Index chunk = detail::short_conv_chunk;
  const auto place_of = [](const Segment& segment, Index index) {
    return 2 * (segment.first / chunk) + index;
  };
  auto scratch = call.scratch<S>();
  const auto kept = scratch(2 * (T / chunk), W - 1, D);
  for (const Segment& segment : call.segments()) {
    for (Index first = 0; segment.count > chunk && first < segment.count; first += chunk) {
      const View<S, 2> before = kept[place_of(segment, first / chunk)];
      for (Index w = 0; w < W - 1; ++w) {
        const Index token = first - (W - 1) + w;
        std::copy_n(
            token < 0 ? &history(segment.row, token + W - 1, 0) : &x(segment.first + token, 0), D,
            &before(w, 0));
      }
    }
  }
  const auto channels_of = [&](const Segment& segment) {
    const Index wanted = call.serial() ? 1 : share_of(call, segment, detail::short_conv_tasks);
    return std::clamp(round_up(ceil_div(D, wanted), alignment), detail::short_conv_least_channels,
                      detail::short_conv_channels);
  };
  const auto work_of = [&](const Segment& segment) {
    const Index channels = std::min(channels_of(segment), D);
    return SegmentWork{ceil_div(segment.count, chunk) * ceil_div(D, channels),
                       std::min(segment.count, chunk) * channels};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    const Index channels = channels_of(unit.segment), groups = ceil_div(D, channels);
    const Index channel = unit.item % groups * channels, first = unit.item / groups * chunk;
    const Index width = std::min(channels, D - channel);
    const Index count = std::min(chunk, unit.tokens() - first);
    const auto part = [&](const auto& view) {
      return unit.tokens_of(view)
          .slice(axis::time, first, count)
          .slice(axis::channel, channel, width);
    };
    const View<const S, 2> input = part(x);
    const View<S, 2> output = part(y);
    const View<S, 2> carried = unit.row_of(history).slice(axis::channel, channel, width);
    const View<const S, 2> past =
        unit.tokens() > chunk
            ? kept[place_of(unit.segment, first / chunk)].slice(axis::channel, channel, width)
            : carried;
    const View<const S, 2> weights = taps.slice(axis::channel, channel, width);
    const S* const start = bias.data() == nullptr ? nullptr : bias.data() + channel;
    const auto row = [&](Index s) -> const S* {
      return s < 0 ? past.data() + (s + W - 1) * past.stride(0)
                   : input.data() + s * input.stride(0);
    };
    auto own = worker.scratch<S>();
    const bool ends = first + count == unit.tokens();
    const auto last = own(ends ? W - 1 : Index{0}, width);  // the history after the segment
    for (Index w = 0; w < last.extent(0); ++w) {
      std::copy_n(row(count - (W - 1) + w), width, &last(w, 0));
    }
    const auto run = [&]<Index Taps>(std::integral_constant<Index, Taps>) {
      if (activation == ShortConvActivation::silu) {
        detail::short_conv_chunk_of<Taps, true>(width, row, weights, start, output);
      } else {
        detail::short_conv_chunk_of<Taps, false>(width, row, weights, start, output);
      }
    };
    switch (W) {
      case 3:
        run(std::integral_constant<Index, 3>{});
        break;
      case 4:
        run(std::integral_constant<Index, 4>{});
        break;
      default:
        run(std::integral_constant<Index, 0>{});
    }
    for (Index w = 0; w < last.extent(0); ++w) std::copy_n(&last(w, 0), width, &carried(w, 0));
  });
}

#define SEQMIX_SHORT_CONV(S)                                                                \
  void short_conv(In<S, 2>, In<S, 2>, In<S, 1>, ShortConvActivation, Out<S, 3>, View<S, 2>, \
                  const Call&)
SEQMIX_COMPILE(SEQMIX_SHORT_CONV);
#undef SEQMIX_SHORT_CONV

SEQMIX_END_NAMESPACE
}  // namespace seqmix
