#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "seqmix/core/call.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/core/expect.hpp"
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
void short_conv_tiles(Index width, auto&& row, const View<const S, 2>& taps, const S* bias,
                      const View<S, 2>& y) {
  Index end = y.extent(0);
  for (; end >= short_conv_tokens; end -= short_conv_tokens) {
    short_conv_tile<Taps, Silu, short_conv_tokens>(width, end - short_conv_tokens, row, taps, bias,
                                                   y);
  }
  for (; end > 0; --end) short_conv_tile<Taps, Silu, 1>(width, end - 1, row, taps, bias, y);
}

/// A chunk of the tokens of a segment, some of its channels.
template <class S>
struct ShortConvChunk {
  View<const S, 2> past;  // [W-1, width], the inputs before them
  View<const S, 2> x;     // [tokens, width]
  View<const S, 2> taps;  // [W, width]
  const S* bias;          // [width], or none
  ShortConvActivation activation;
  View<S, 2> y;     // [tokens, width]
  View<S, 2> last;  // [W-1, width], gets the last inputs, or none
};

template <class S>
void short_conv_chunk_of(const ShortConvChunk<S>& chunk, const Call& call) {
  const View<const S, 2> past = chunk.past, x = chunk.x;
  const Index width = x.extent(1), W = chunk.taps.extent(0);
  const auto row = [&](Index s) -> const S* {
    return s < 0 ? past.data() + (s + W - 1) * past.stride(0) : x.data() + s * x.stride(0);
  };
  // They are kept aside while the sums are written, as y may be x and `last` may be `past`.
  auto scratch = call.scratch<S>();
  const auto last = scratch(chunk.last.extent(0), width);
  for (Index w = 0; w < last.extent(0); ++w) {
    std::copy_n(row(x.extent(0) - (W - 1) + w), width, &last(w, 0));
  }
  const auto run = [&]<Index Taps>(std::integral_constant<Index, Taps>) {
    if (chunk.activation == ShortConvActivation::silu) {
      short_conv_tiles<Taps, true>(width, row, chunk.taps, chunk.bias, chunk.y);
    } else {
      short_conv_tiles<Taps, false>(width, row, chunk.taps, chunk.bias, chunk.y);
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
  for (Index w = 0; w < last.extent(0); ++w) std::copy_n(&last(w, 0), width, &chunk.last(w, 0));
}

/// What comes before each chunk of the segments that have more than one: x may be gone when a chunk
/// needs the end of the one before it, and the last one advances the history.
template <class S>
class ShortConvPasts {
 public:
  ShortConvPasts(const View<const S, 2>& x, const View<S, 3>& history, const Call& call)
      : scratch_(call.scratch<S>()),
        kept_(scratch_(2 * (x.extent(0) / short_conv_chunk), history.extent(1), x.extent(1))) {
    const Index count = history.extent(1);
    for (const Segment& segment : call.segments()) {
      if (segment.count <= short_conv_chunk) continue;
      for (Index first = 0; first < segment.count; first += short_conv_chunk) {
        const View<S, 2> to = before(segment, first);
        for (Index w = 0; w < count; ++w) {
          const Index token = first - count + w;
          std::copy_n(
              token < 0 ? &history(segment.row, token + count, 0) : &x(segment.first + token, 0),
              x.extent(1), &to(w, 0));
        }
      }
    }
  }

  /// [W-1, D], before the chunk that begins with token `first` of a segment.
  View<S, 2> before(const Segment& segment, Index first) const {
    return kept_[2 * (segment.first / short_conv_chunk) + first / short_conv_chunk];
  }

 private:
  Context::Scratch<S> scratch_;
  View<S, 3> kept_;
};

/// How many channels a task takes.
inline Index short_conv_width(const Call& call, const Segment& segment, Index D) {
  const Index wanted = call.serial() ? 1 : share_of(call, segment, short_conv_tasks);
  const Index channels = round_up(ceil_div(D, wanted), alignment);
  return std::min(std::clamp(channels, short_conv_least_channels, short_conv_channels), D);
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
  const Expect expect{"short_conv"};
  expect.rows("x", x, {T, D}), expect.rows("y", y, {T, D});
  expect.rows("taps", taps, {std::max<Index>(W, 1), D});
  if (bias.data() != nullptr) expect.rows("bias", bias, {D});
  expect.rows("history", history, {history.extent(0), W - 1, D});
  if (y.empty()) return;

  constexpr Index chunk = detail::short_conv_chunk;
  const detail::ShortConvPasts<S> pasts(x, history, call);
  const auto width_of = [&](const Segment& segment) {
    return detail::short_conv_width(call, segment, D);
  };
  const auto work_of = [&](const Segment& segment) {
    const Index width = width_of(segment);
    return SegmentWork{ceil_div(segment.count, chunk) * ceil_div(D, width),
                       std::min(segment.count, chunk) * width};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    const Index most = width_of(unit.segment), groups = ceil_div(D, most);
    const Index channel = unit.item % groups * most, first = unit.item / groups * chunk;
    const Index count = std::min(chunk, unit.tokens() - first);
    const auto channels_of = [&](const auto& view) {
      return view.slice(axis::channel, channel, std::min(most, D - channel));
    };
    const auto tokens_of = [&](const auto& view) {
      return channels_of(unit.tokens_of(view).slice(axis::time, first, count));
    };
    const View<S, 2> carried = channels_of(unit.row_of(history));
    const bool alone = unit.tokens() <= chunk, ends = first + count == unit.tokens();
    detail::short_conv_chunk_of<S>(
        {.past = alone ? carried : channels_of(pasts.before(unit.segment, first)),
         .x = tokens_of(x),
         .taps = channels_of(taps),
         .bias = bias.data() == nullptr ? nullptr : bias.data() + channel,
         .activation = activation,
         .y = tokens_of(y),
         .last = ends ? carried : View<S, 2>{}},
        worker);
  });
}

#define SEQMIX_SHORT_CONV(S)                                                                \
  void short_conv(In<S, 2>, In<S, 2>, In<S, 1>, ShortConvActivation, Out<S, 3>, View<S, 2>, \
                  const Call&)
SEQMIX_COMPILE(SEQMIX_SHORT_CONV);
#undef SEQMIX_SHORT_CONV

SEQMIX_END_NAMESPACE
}  // namespace seqmix
