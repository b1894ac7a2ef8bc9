#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "seqmix/core/context.hpp"
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
/// x, y: [B, T, D]. taps: [W, D], a checkpoint's [D, 1, W] transposed. bias: [D], or empty.
/// history: [B, W-1, D], the last inputs, oldest first; read, then advanced by the T tokens. The
/// sum is one chain of fma, bias first, then ascending w, whatever T, so that any split of a
/// sequence gives the same bits. y may be x.
template <class S>
void short_conv(In<S, 3> x, In<S, 2> taps, In<S, 1> bias, ShortConvActivation activation,
                Out<S, 3> history, View<S, 3> y, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      short_conv<S>(x.template slice<1>(piece.first, piece.count), taps, bias, activation,
                    history.template slice<0>(piece.row, 1),
                    y.template slice<1>(piece.first, piece.count), context);
    });
  }
  const Index B = y.extent(0), T = y.extent(1), D = y.extent(2), W = taps.extent(0);
  const auto check = [D](const char* which, const auto& view, const auto& expected) {
    const Index last = view.rank - 1;
    if (view.shape() != expected || (D > 1 && view.stride(last) != 1)) {
      throw ShapeError(std::string("short_conv: ") + which + " has shape " + view.shape().text() +
                       ", expected " + expected.text() + ", the last dimension contiguous");
    }
  };
  check("x", x, Shape<3>{B, T, D});
  check("y", y, Shape<3>{B, T, D});
  check("taps", taps, Shape<2>{std::max<Index>(W, 1), D});
  if (bias.data() != nullptr) check("bias", bias, Shape<1>{D});
  check("history", history, Shape<3>{B, W - 1, D});
  if (y.empty()) return;

  // x may be gone when the next chunk needs the end of this one, or the history advances.
  const Index chunks = ceil_div(T, detail::short_conv_chunk);
  auto scratch = context.scratch<S>();
  const auto kept = scratch(B, chunks, W - 1, D);
  for (Index b = 0; b < B; ++b) {
    for (Index chunk = 0; chunk < chunks; ++chunk) {
      const Index end = std::min(T, (chunk + 1) * detail::short_conv_chunk);
      for (Index w = 0; w < W - 1; ++w) {
        const Index token = end - (W - 1) + w;
        const S* const from = token < 0 ? &history(b, token + W - 1, 0) : &x(b, token, 0);
        std::copy_n(from, D, &kept(b, chunk, w, 0));
      }
    }
  }
  const Index groups = ceil_div(D, detail::short_conv_channels);
  context.parallel_for(B * chunks * groups, [&](Index task, Context&) {
    const Index b = task / groups / chunks, chunk = task / groups % chunks;
    const Index channel = task % groups * detail::short_conv_channels;
    const Index width = std::min(detail::short_conv_channels, D - channel);
    const Index first = chunk * detail::short_conv_chunk;
    const auto part = [&](const auto& view) {
      return view.template slice<0>(first, std::min(detail::short_conv_chunk, T - first))
          .template slice<1>(channel, width);
    };
    const View<const S, 2> input = part(x[b]);
    const View<S, 2> output = part(y[b]);
    const View<const S, 2> past = chunk == 0 ? history[b] : kept[b][chunk - 1];
    const View<const S, 2> weights = taps.template slice<1>(channel, width);
    const S* start = bias.data() == nullptr ? nullptr : bias.data() + channel;
    const auto row = [&](Index s) -> const S* {
      return s < 0 ? past.data() + (s + W - 1) * past.stride(0) + channel
                   : input.data() + s * input.stride(0);
    };
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
  });
  for (Index b = 0; b < B; ++b) copy(kept[b][chunks - 1], history[b]);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
