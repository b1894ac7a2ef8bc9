#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/long_conv.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a long convolution goes on token by token. `amortized`: least work on average, but a token
/// whose number is a power of two pays for a long transform. `spread`: transforms of bounded
/// length, evenly over the tokens.
enum class StepForm { amortized, spread };
constexpr std::array<std::string_view, 2> names_of(StepForm) { return {"amortized", "spread"}; }

namespace detail {

/// The channels of one task of a step.
inline constexpr Index online_channels = 256;

/// Makes the arena of a serial context hold what the longest transform of a step will need, so that
/// the first step has grown it for all.
template <class S>
void reserve_transform(Index length, Context& context) {
  const auto scope = context.scratch<S>();
  const Index numbers = 2 * length * simd::lanes<S> + online_channels;
  context.arena().allocate(numbers * static_cast<Index>(sizeof(S)) + 8 * alignment);
}

/// Rows [first, first + count) of up to `lanes` channels of a batch row of the history: where they
/// are, or copied to `rows` where a full register would reach past the channels.
template <class S>
typename FftPlan<S>::template Rows<const S> history_rows(const View<const S, 2>& history,
                                                         Index first, Index count, Index channel,
                                                         typename Context::Scratch<S>& rows) {
  constexpr Index lanes = simd::lanes<S>;
  const Index channels = std::min(lanes, history.extent(1) - channel);
  const S* from = history.data() + first * history.stride(0) + channel;
  if (channels == lanes) return {from, history.stride(0), 0, count};
  const auto packed = rows(count, lanes);
  for (Index r = 0; r < count; ++r) {
    simd::store<S>(&packed(r, 0), simd::load<S>(from + r * history.stride(0), channels));
  }
  return {packed.data(), lanes, 0, count};
}

/// What the U tokens of history before `end` add to the U tokens from `end` on, for the channels of
/// one register: out[r] = Σ_m x[end - U + m] h[U + r - m]. History and sums are those of a row, and
/// the sums take the place of the tokens that they come from.
template <class S>
void online_tile(const View<const S, 2>& history, Index end, Index U, const LongFilter<S>& filter,
                 Index block, const View<S, 2>& sums, Context& context) {
  using Batch = simd::Batch<S>;
  constexpr Index lanes = simd::lanes<S>, rows_at_once = 4, longest_direct = 16;
  const Index channel = block * lanes, count = std::min(lanes, history.extent(1) - channel);
  const Index reach = std::min(filter.length(), 2 * U);
  auto scratch = context.scratch<S>();
  const auto x = history_rows<S>(history, end - U, U, channel, scratch);
  const auto put = [&](Index r, Batch value) {
    simd::store(&sums(end - U + r, channel), value, count);
  };
  const bool direct = context.algorithm() == Algorithm::automatic
                          ? U <= longest_direct
                          : context.algorithm() == Algorithm::recurrent;
  if (!direct) {
    const auto spectrum = std::ranges::find_if(filter.spectra(), [&](const auto& candidate) {
      return candidate.taps() >= reach && candidate.plan().length() >= 2 * U;
    });
    const auto z = scratch(spectrum->plan().points(), FftPlan<S>::width);
    const auto out = scratch(U, lanes);
    spectrum->filter(block, x, {out.data(), lanes, U, U}, z.data());
    for (Index r = 0; r < U; ++r) put(r, simd::load(&out(r, 0)));
    return;
  }
  // h[1 .. 2 U - 1], zero where the filter has ended.
  const auto h = scratch(2 * U + rows_at_once, lanes);
  for (Index l = 0; l < h.extent(0); ++l) {
    simd::store(&h(l, 0), l < reach ? simd::load(&filter.taps()(l, channel)) : Batch(S(0)));
  }
  for (Index r = 0; r < U; r += rows_at_once) {
    Batch sum[rows_at_once];
    unrolled<rows_at_once>([&](auto i) { sum[i] = Batch(S(0)); });
    for (Index m = 0; m < U; ++m) {
      const Batch value = simd::load<S>(x.data + m * x.stride);
      unrolled<rows_at_once>(
          [&](auto i) { sum[i] = simd::fma(simd::load<S>(&h(U + r + i - m, 0)), value, sum[i]); });
    }
    unrolled<rows_at_once>([&](auto i) {
      if (r + i < U) put(r + i, sum[i]);
    });
  }
}

/// The new tiles of the channels of one register after `past` + `tokens` tokens: of the binary
/// digits of that number those that `past` did not have.
template <class S>
void online_tiles(const View<const S, 2>& history, Index past, Index tokens,
                  const LongFilter<S>& filter, Index block, const View<S, 2>& sums,
                  Context& context) {
  const Index seen = past + tokens;
  for (Index U = 1; U <= seen; U *= 2) {
    const Index end = seen / U * U;
    if ((seen & U) != 0 && end > past) {
      online_tile<S>(history, end, U, filter, block, sums, context);
    }
  }
}

/// Checks what the kernels below have in common. `sums` has any number of rows.
template <class S>
void check_online(const View<const S, 3>& history, const View<const Index, 1>& past, Index tokens,
                  const LongFilter<S>& filter, const View<S, 3>& sums) {
  const Index B = history.extent(0), D = filter.channels();
  const auto check = [&](const char* which, const auto& view) {
    if (view.extent(0) != B || view.extent(2) != D || (D > 1 && view.stride(2) != 1)) {
      throw ShapeError(std::string("online_conv: ") + which + " has shape " + view.shape().text() +
                       ", expected " + Shape<3>{B, view.extent(1), D}.text() +
                       ", the last dimension contiguous");
    }
  };
  check("history", history), check("sums", sums);
  bool fits = past.extent(0) == B;
  for (Index b = 0; fits && b < B; ++b) {
    fits = past[b] >= 0 && past[b] + tokens <= std::min(history.extent(1), filter.length());
  }
  if (!fits) {
    throw ShapeError("online_conv: " + std::to_string(tokens) + " tokens behind past " +
                     past.shape().text() + " exceed a history of " + history.shape().text() +
                     " or a filter of " + std::to_string(filter.length()) + " taps");
  }
}

}  // namespace detail

/// Makes the sums of an online convolution follow its history by the `tokens` tokens behind `past`,
/// which have been appended: what `online_conv_step` needs after a prefill.
///
/// Shapes as there. O(U log U) for each binary digit U of past + tokens that is new.
template <class S>
void online_conv_advance(In<S, 3> history, In<Index, 1> past, Index tokens,
                         const LongFilter<S>& filter, View<S, 3> sums, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      online_conv_advance<S>(history.template slice<0>(piece.row, 1),
                             past.template slice<0>(piece.row, 1), piece.count, filter,
                             sums.template slice<0>(piece.row, 1), context);
    });
  }
  detail::check_online<S>(history, past, tokens, filter, sums);
  const Index B = history.extent(0), blocks = ceil_div(filter.channels(), simd::lanes<S>);
  context.parallel_for(B * blocks, [&](Index task, Context& worker) {
    const Index b = task % B;
    detail::online_tiles<S>(history[b], past[b], tokens, filter, task / B, sums[b], worker);
  });
}

/// One token of y_t = Σ_{l <= t} h[l] u_{t-l}, exactly, in O(log² t) a channel on average.
///
/// u, y: [B, D], y may be u. history: [B, capacity, D], which already ends with u behind its `past`
/// [B] tokens. sums: [B, capacity, D].
/// After t tokens each binary digit U of t stands for a tile: its U tokens, those before
/// e = floor(t / U) U, have been added up into what they give to the U tokens from e on, at lags of
/// 1 to 2 U - 1. The tiles of all digits are the tokens so far once over, so the sums lie where the
/// tokens do: those for token s + U at s. Hence t rows are valid after t tokens, whatever came in
/// steps and what in prefills, and they follow from the history alone. Older sums are overwritten:
/// who takes tokens back calls `online_conv_advance` for all that are left.
/// Source: Oncescu et al. 2024, arXiv:2410.12982 (van der Hoeven's relaxed multiplication).
template <class S>
void online_conv_step(In<S, 2> u, In<S, 3> history, In<Index, 1> past, const LongFilter<S>& filter,
                      View<S, 3> sums, View<S, 2> y, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      online_conv_step<S>(
          u.template slice<0>(piece.first, piece.count), history.template slice<0>(piece.row, 1),
          past.template slice<0>(piece.row, 1), filter, sums.template slice<0>(piece.row, 1),
          y.template slice<0>(piece.first, piece.count), context);
    });
  }
  using Batch = simd::Batch<S>;
  detail::check_online<S>(history, past, 1, filter, sums);
  if (y.empty()) return;
  detail::reserve_transform<S>(filter.spectra().back().plan().length(), context);
  constexpr Index channels = detail::online_channels;
  const Index D = y.extent(1), groups = ceil_div(D, channels);
  context.parallel_for(y.extent(0) * groups, [&](Index task, Context& worker) {
    const Index b = task / groups, channel = task % groups * channels, t = past[b];
    const Index width = std::min(channels, D - channel);
    auto scratch = worker.scratch<S>();
    const auto sum = scratch(width);
    const auto multiply = [](Batch h, Batch value) { return h * value; };
    const auto add = [](Batch a, Batch value) { return a + value; };
    const S *const tap = &filter.taps()(0, channel), *const value = u[b].data() + channel;
    simd::map<S>(width, sum.data(), multiply, tap, value);
    for (Index U = 1; U <= t; U *= 2) {
      const S* const row = sums[b].data() + (t - U) * sums.stride(1) + channel;
      if ((t & U) != 0) simd::map<S>(width, sum.data(), add, std::as_const(sum).data(), row);
    }
    std::copy_n(sum.data(), width, y[b].data() + channel);
    for (Index block = channel / simd::lanes<S>; block * simd::lanes<S> < channel + width;
         ++block) {
      detail::online_tiles<S>(history[b], t, 1, filter, block, sums[b], worker);
    }
  });
}

/// The spectra by which a spread online convolution adds blocks of tokens to later blocks;
/// immutable, copies share. Beside the filter's own it holds 1 to 2 times the taps.
///
/// Level i cuts the tokens into blocks of V = 32 2^i. A block b gets there what the blocks b - 2
/// and, where b is odd, b - 3 give to it: both are complete when block b - 1 begins, so that V
/// tokens are left for the work. Levels below have what is nearer, the level above what is further
/// away; on the last level a block gets all of the blocks up to b - 2. The two newest blocks of 32
/// are added up directly.
template <class S>
class SpreadFilter {
 public:
  static constexpr Index shortest_block = 32;
  /// The channels whose work is done together; a multiple of every register's lanes.
  static constexpr Index group = 16;
  static_assert(group % simd::lanes<S> == 0);

  struct Level {
    Index block = 0;  // V
    bool last = false;
    Index row = 0;                                    // of its first sums: two blocks a level
    std::vector<detail::LongSpectrum<S>> segments{};  // of distances 2, 3, ...

    /// The blocks [first, b - 1) that give to block b on this level.
    Index first_source(Index b) const {
      return std::max<Index>(b - (last ? static_cast<Index>(segments.size()) + 1 : 2 + b % 2), 0);
    }
    Index sources(Index b) const { return std::max<Index>(b - 1 - first_source(b), 0); }
    /// Where the sums of block b are: the next block's are made while this one's are read.
    Index sum_row(Index b) const { return row + b % 2 * block; }
  };

  /// `longest_block` bounds the transforms, hence the longest step; the sums of what is further
  /// away than twice that grow with t.
  explicit SpreadFilter(LongFilter<S> filter, Index longest_block = 1024)
      : filter_(std::move(filter)) {
    const View<const S, 2> taps = filter_.taps();
    const Index L = filter_.length();
    auto data = std::make_shared<std::vector<Level>>();
    for (Index V = shortest_block; V <= longest_block && 2 * V < L; V *= 2) {
      data->push_back({.block = V, .row = 2 * (V - shortest_block)});
    }
    if (!data->empty()) data->back().last = true;
    for (Level& level : *data) {
      const Index V = level.block;
      for (Index distance = 2; (distance - 1) * V < L && (level.last || distance <= 3);
           ++distance) {
        const Index first = (distance - 1) * V;
        level.segments.emplace_back(taps.template slice<0>(first, std::min(2 * V, L - first)),
                                    2 * V, 2 * V);
      }
    }
    levels_ = std::move(data);
  }

  const LongFilter<S>& filter() const { return filter_; }
  const std::vector<Level>& levels() const { return *levels_; }
  /// The rows of sums that a stream needs.
  Index rows() const { return levels_->empty() ? 0 : levels_->back().row + 2 * longest(); }
  Index longest() const { return levels_->empty() ? 0 : levels_->back().block; }

 private:
  LongFilter<S> filter_;
  std::shared_ptr<const std::vector<Level>> levels_;
};

namespace detail {

/// Adds what block `source` of the history gives to block b of a level, for one group of channels;
/// `first`: the old sums of an earlier block are replaced.
template <class S>
void spread_item(const View<const S, 2>& history, const typename SpreadFilter<S>::Level& level,
                 Index b, Index source, bool first, Index group, const View<S, 2>& sums,
                 Context& context) {
  constexpr Index lanes = simd::lanes<S>, width = SpreadFilter<S>::group;
  const Index V = level.block, D = history.extent(1);
  for (Index channel = group * width; channel < std::min(D, (group + 1) * width);
       channel += lanes) {
    auto scratch = context.scratch<S>();
    const auto x = history_rows<S>(history, source * V, V, channel, scratch);
    const auto& spectrum = level.segments[static_cast<std::size_t>(b - source - 2)];
    const auto z = scratch(spectrum.plan().points(), FftPlan<S>::width);
    const auto out = scratch(V, lanes);
    spectrum.filter(channel / lanes, x, {out.data(), lanes, V, V}, z.data());
    const Index count = std::min(lanes, D - channel);
    for (Index r = 0; r < V; ++r) {
      S* to = &sums(level.sum_row(b) + r, channel);
      const auto value = simd::load(&out(r, 0));
      simd::store(to, first ? value : simd::load<S>(to, count) + value, count);
    }
  }
}

/// The share of a level's work for one group of channels that is due when `past` becomes `seen`.
///
/// While the tokens of block b - 1 come, the items of block b (a group and a source, groups first)
/// are done in proportion. A jump over several blocks leaves out those that no sum is left of.
template <class S>
void spread_share(const View<const S, 2>& history, Index past, Index seen,
                  const typename SpreadFilter<S>::Level& level, Index group, const View<S, 2>& sums,
                  Context& context) {
  const Index V = level.block, groups = ceil_div(history.extent(1), SpreadFilter<S>::group);
  past = std::max(past, (seen / V - 2) * V);
  for (Index b = past / V + 1; (b - 1) * V < seen; ++b) {
    const Index start = (b - 1) * V, sources = level.sources(b), items = sources * groups;
    const Index begin = std::max(group * sources, items * std::max<Index>(past - start, 0) / V);
    const Index end = std::min((group + 1) * sources, items * std::min(seen - start, V) / V);
    for (Index item = begin; item < end; ++item) {
      const Index number = item - group * sources;
      spread_item<S>(history, level, b, level.first_source(b) + number, number == 0, group, sums,
                     context);
    }
  }
}

template <class S>
void spread_advance(const View<const S, 3>& history, const View<const Index, 1>& past, Index tokens,
                    const SpreadFilter<S>& filter, const View<S, 3>& sums, Context& context) {
  if (sums.extent(1) != filter.rows()) {
    throw ShapeError("spread_conv: sums have shape " + sums.shape().text() + ", expected " +
                     std::to_string(filter.rows()) + " rows");
  }
  const Index B = history.extent(0), groups = ceil_div(history.extent(2), SpreadFilter<S>::group);
  const Index levels = static_cast<Index>(filter.levels().size());
  context.parallel_for(B * levels * groups, [&](Index task, Context& worker) {
    const Index b = task % B, group = task / B % groups;
    const auto& level = filter.levels()[static_cast<std::size_t>(task / B / groups)];
    spread_share<S>(history[b], past[b], past[b] + tokens, level, group, sums[b], worker);
  });
}

}  // namespace detail

/// `online_conv_advance` for sums [B, filter.rows(), D] of the spread form.
template <class S>
void spread_conv_advance(In<S, 3> history, In<Index, 1> past, Index tokens,
                         const SpreadFilter<S>& filter, View<S, 3> sums, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      spread_conv_advance<S>(history.template slice<0>(piece.row, 1),
                             past.template slice<0>(piece.row, 1), piece.count, filter,
                             sums.template slice<0>(piece.row, 1), context);
    });
  }
  detail::check_online<S>(history, past, tokens, filter.filter(), sums);
  detail::spread_advance<S>(history, past, tokens, filter, sums, context);
}

/// `online_conv_step` whose work is the same for nearly all tokens: sums [B, filter.rows(), D].
///
/// O(log² V + t / V log V) a token and channel, V the longest block, and no token costs much more.
/// A partition of the filter as in Gardner 1995, Efficient convolution without input-output delay,
/// with blocks that are only added where no level above or below does.
template <class S>
void spread_conv_step(In<S, 2> u, In<S, 3> history, In<Index, 1> past,
                      const SpreadFilter<S>& filter, View<S, 3> sums, View<S, 2> y,
                      Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      spread_conv_step<S>(
          u.template slice<0>(piece.first, piece.count), history.template slice<0>(piece.row, 1),
          past.template slice<0>(piece.row, 1), filter, sums.template slice<0>(piece.row, 1),
          y.template slice<0>(piece.first, piece.count), context);
    });
  }
  using Batch = simd::Batch<S>;
  detail::check_online<S>(history, past, 1, filter.filter(), sums);
  const auto input = detail::long_conv_inputs<S>(u.template insert<1>(), history, past,
                                                 filter.filter(), y.template insert<1>());
  if (y.empty()) return;
  detail::reserve_transform<S>(2 * filter.longest(), context);
  constexpr Index channels = detail::online_channels;
  const Index D = y.extent(1), groups = ceil_div(D, channels);
  context.parallel_for(y.extent(0) * groups, [&](Index task, Context& worker) {
    const Index b = task / groups, channel = task % groups * channels, t = past[b];
    const Index width = std::min(channels, D - channel);
    const Index block = SpreadFilter<S>::shortest_block;
    const Index near =
        filter.levels().empty() ? t + 1 : t % block + std::min(t / block, Index{1}) * block + 1;
    const View<const S, 2> taps =
        filter.filter().taps().template slice<0>(0, std::min(near, filter.filter().length()));
    S* const to = y[b].data() + channel;
    detail::direct_sum(input(b), taps, channel, width, to, worker);
    const auto add = [](Batch a, Batch value) { return a + value; };
    for (const auto& level : filter.levels()) {
      const Index row = level.sum_row(t / level.block) + t % level.block;
      simd::map<S>(width, to, add, to, sums[b].data() + row * sums.stride(1) + channel);
    }
  });
  detail::spread_advance<S>(history, past, 1, filter, sums, context);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
