#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/expect.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/conv/long.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a long convolution goes on token by token. `amortized`: least work on average, but a token
/// whose number is a power of two pays for a long transform. `spread`: transforms of bounded
/// length, evenly over the tokens.
enum class StepForm { amortized, spread };
constexpr std::array<std::string_view, 2> names_of(StepForm) { return {"amortized", "spread"}; }

namespace detail {

/// Makes the arena of a serial call hold what the longest transform of a step will need, so that
/// the first step has grown it for all.
template <class S>
void reserve_transform(Index length, const Call& call) {
  const auto scope = call.scratch<S>();
  const Index numbers = 2 * length * simd::lanes<S> + direct_channels;
  call.context().arena().allocate(numbers * static_cast<Index>(sizeof(S)) + 8 * alignment);
}

/// Rows [first, first + count) of up to `lanes` channels of a row of the history: where they
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
                 Index block, const View<S, 2>& sums, const Call& call) {
  using Batch = simd::Batch<S>;
  constexpr Index lanes = simd::lanes<S>, rows_at_once = 4, longest_direct = 16;
  const Index channel = block * lanes, count = std::min(lanes, history.extent(1) - channel);
  const Index reach = std::min(filter.length(), 2 * U);
  auto scratch = call.scratch<S>();
  const auto x = history_rows<S>(history, end - U, U, channel, scratch);
  const auto put = [&](Index r, Batch value) {
    simd::store(&sums(end - U + r, channel), value, count);
  };
  const bool direct = call.algorithm() == Algorithm::automatic
                          ? U <= longest_direct
                          : call.algorithm() == Algorithm::recurrent;
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
                  const Call& call) {
  const Index seen = past + tokens;
  for (Index U = 1; U <= seen; U *= 2) {
    const Index end = seen / U * U;
    if ((seen & U) != 0 && end > past) {
      online_tile<S>(history, end, U, filter, block, sums, call);
    }
  }
}

/// Checks what the kernels below have in common. `sums` has any number of rows.
template <class S>
void check_online(const View<const S, 3>& history, const View<const Index, 1>& past,
                  const LongFilter<S>& filter, const View<S, 3>& sums, const Call& call) {
  const Index B = history.extent(axis::row), D = filter.channels();
  const Expect expect{"online_conv"};
  expect.rows("history", history, {B, history.extent(1), D});
  expect.rows("sums", sums, {B, sums.extent(1), D}), expect.shape("past", past, {B});
  for (const Segment& segment : call.segments()) {
    const Index seen = past[segment.row];
    if (seen >= 0 && seen + segment.count <= std::min(history.extent(1), filter.length())) continue;
    throw ShapeError("online_conv: " + std::to_string(segment.count) + " tokens behind the " +
                     std::to_string(seen) + " of row " + std::to_string(segment.row) +
                     " exceed a history of " + history.shape().text() + " or a filter of " +
                     std::to_string(filter.length()) + " taps");
  }
}

/// Makes the arena hold what the steps of a call will need, if it has recurrent segments.
template <class S>
void reserve_steps(Index length, const Call& call) {
  const auto steps = [](const Segment& segment) { return segment.form == Form::recurrent; };
  if (std::ranges::any_of(call.segments(), steps)) reserve_transform<S>(length, call);
}

/// One token of `online_conv` for the channels [channel, channel + width) of a row.
template <class S>
void online_step(const S* u, const View<const S, 2>& history, Index past,
                 const LongFilter<S>& filter, const View<S, 2>& sums, Index channel, Index width,
                 S* y, const Call& call) {
  using Batch = simd::Batch<S>;
  auto scratch = call.scratch<S>();
  const auto sum = scratch(width);
  const auto multiply = [](Batch h, Batch value) { return h * value; };
  const auto add = [](Batch a, Batch value) { return a + value; };
  simd::map<S>(width, sum.data(), multiply, &filter.taps()(0, channel), u);
  for (Index U = 1; U <= past; U *= 2) {
    const S* const row = sums.data() + (past - U) * sums.stride(0) + channel;
    if ((past & U) != 0) simd::map<S>(width, sum.data(), add, std::as_const(sum).data(), row);
  }
  std::copy_n(sum.data(), width, y);
  for (Index first = channel; first < channel + width; first += simd::lanes<S>) {
    online_tiles<S>(history, past, 1, filter, first / simd::lanes<S>, sums, call);
  }
}

}  // namespace detail

/// y_t = Σ_{l <= t} h[l] u_{t-l} of streams that go on token by token, exactly: O(log² t) a token
/// and channel of a recurrent segment on average. A parallel one is `long_conv_continue`, after
/// which the sums follow, O(U log U) for each binary digit U of its row's tokens that is new.
///
/// u, y: [T, D], y may be u. history: [B, capacity, D], which already has u behind the `past` [B]
/// tokens of each row. sums: [B, capacity, D].
/// After t tokens each binary digit U of t stands for a tile: its U tokens, those before
/// e = floor(t / U) U, have been added up into what they give to the U tokens from e on, at lags of
/// 1 to 2 U - 1. The tiles of all digits are the tokens so far once over, so the sums lie where the
/// tokens do: those for token s + U at s. Hence t rows are valid after t tokens, whatever came in
/// steps and what in prefills, and they follow from the history alone. Older sums are overwritten:
/// who takes tokens back makes them anew from all that are left.
/// Source: Oncescu et al. 2024, arXiv:2410.12982 (van der Hoeven's relaxed multiplication).
template <class S>
void online_conv(In<S, 2> u, In<S, 3> history, In<Index, 1> past, const LongFilter<S>& filter,
                 Out<S, 3> sums, View<S, 2> y, const Call& call) {
  detail::check_long_conv<S>(u, history, past, filter, y);
  detail::check_online<S>(history, past, filter, sums, call);
  if (y.empty()) return;
  detail::reserve_steps<S>(filter.spectra().back().plan().length(), call);
  constexpr Index step_cost = 256;  // of a token and channel: about, by the transforms alone
  const auto plan_of = [&](const Segment& segment) {
    return detail::LongConvPlan<S>(filter, segment, past[segment.row], call.algorithm());
  };
  const auto work_of = [&](const Segment& segment) {
    if (segment.form == Form::parallel) return plan_of(segment).work;
    return SegmentWork{ceil_div(filter.channels(), detail::direct_channels),
                       segment.count * detail::direct_channels * step_cost};
  };
  for_each_unit(
      call, detail::convolution_cost_per_task, work_of, [&](const Unit& unit, const Call& worker) {
        const View<const S, 2> tokens = unit.tokens_of(u), old = unit.row_of(history);
        const View<S, 2> out = unit.tokens_of(y), row_sums = unit.row_of(sums);
        const Index seen = past[unit.row()];
        const auto width_from = [&](Index channel, Index channels) {
          return std::min(channels, filter.channels() - channel);
        };
        if (unit.segment.form == Form::recurrent) {
          const Index channel = unit.item * detail::direct_channels;
          for (Index t = 0; t < unit.tokens(); ++t) {
            detail::online_step<S>(tokens[t].data() + channel, old, seen + t, filter, row_sums,
                                   channel, width_from(channel, detail::direct_channels),
                                   out[t].data() + channel, worker);
          }
          return;
        }
        const detail::LongConvPlan<S> plan = plan_of(unit.segment);
        const Index channel = unit.item * plan.channels, width = width_from(channel, plan.channels);
        detail::long_conv_unit<S>({old, tokens, seen}, filter, plan, channel, width, out, worker);
        for (Index first = channel; first < channel + width; first += simd::lanes<S>) {
          detail::online_tiles<S>(old, seen, unit.tokens(), filter, first / simd::lanes<S>,
                                  row_sums, worker);
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
    Index row = 0;                                   // of its first sums: two blocks a level
    std::vector<detail::LongSpectrum<S>> spectra{};  // of distances 2, 3, ...

    /// The blocks [first, b - 1) that give to block b on this level.
    Index first_source(Index b) const {
      return std::max<Index>(b - (last ? static_cast<Index>(spectra.size()) + 1 : 2 + b % 2), 0);
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
        level.spectra.emplace_back(taps.slice(axis::time, first, std::min(2 * V, L - first)), 2 * V,
                                   2 * V);
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

/// Multiply-adds that are worth a task of the sums' advance: little, as few units have any at a
/// token.
inline constexpr Index spread_cost_per_task = Index{1} << 12;

/// Adds what block `source` of the history gives to block b of a level, for one group of channels;
/// `first`: the old sums of an earlier block are replaced.
template <class S>
void spread_item(const View<const S, 2>& history, const typename SpreadFilter<S>::Level& level,
                 Index b, Index source, bool first, Index group, const View<S, 2>& sums,
                 const Call& call) {
  constexpr Index lanes = simd::lanes<S>, width = SpreadFilter<S>::group;
  const Index V = level.block, D = history.extent(1);
  for (Index channel = group * width; channel < std::min(D, (group + 1) * width);
       channel += lanes) {
    auto scratch = call.scratch<S>();
    const auto x = history_rows<S>(history, source * V, V, channel, scratch);
    const auto& spectrum = level.spectra[static_cast<std::size_t>(b - source - 2)];
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
                  const Call& call) {
  const Index V = level.block, groups = ceil_div(history.extent(1), SpreadFilter<S>::group);
  past = std::max(past, (seen / V - 2) * V);
  for (Index b = past / V + 1; (b - 1) * V < seen; ++b) {
    const Index start = (b - 1) * V, sources = level.sources(b), items = sources * groups;
    const Index begin = std::max(group * sources, items * std::max<Index>(past - start, 0) / V);
    const Index end = std::min((group + 1) * sources, items * std::min(seen - start, V) / V);
    for (Index item = begin; item < end; ++item) {
      const Index number = item - group * sources;
      spread_item<S>(history, level, b, level.first_source(b) + number, number == 0, group, sums,
                     call);
    }
  }
}

/// The tokens of a segment in one round of `spread_conv`: those of a parallel segment come at once,
/// those of a recurrent one a round each.
inline Index tokens_of_round(const Segment& segment, Index round) {
  if (segment.form == Form::parallel) return round == 0 ? segment.count : 0;
  return segment.count > round ? 1 : 0;
}

/// The outputs of one round.
template <class S>
void spread_outputs(const View<const S, 2>& u, const View<const S, 3>& history,
                    const View<const Index, 1>& past, const SpreadFilter<S>& filter,
                    const View<S, 3>& sums, const View<S, 2>& y, Index round, const Call& call) {
  using Batch = simd::Batch<S>;
  constexpr Index block = SpreadFilter<S>::shortest_block;
  const Index D = y.extent(axis::channel);
  const auto plan_of = [&](const Segment& segment) {
    return LongConvPlan<S>(filter.filter(), segment, past[segment.row], call.algorithm());
  };
  const auto work_of = [&](const Segment& segment) {
    if (tokens_of_round(segment, round) == 0) return SegmentWork{};
    if (segment.form == Form::parallel) return plan_of(segment).work;
    return SegmentWork{ceil_div(D, direct_channels), direct_channels * 2 * block};
  };
  for_each_unit(
      call, convolution_cost_per_task, work_of, [&](const Unit& unit, const Call& worker) {
        const View<const S, 2> old = unit.row_of(history);
        if (unit.segment.form == Form::parallel) {
          const LongConvPlan<S> plan = plan_of(unit.segment);
          const Index channel = unit.item * plan.channels;
          return long_conv_unit<S>({old, unit.tokens_of(u), past[unit.row()]}, filter.filter(),
                                   plan, channel, std::min(plan.channels, D - channel),
                                   unit.tokens_of(y), worker);
        }
        const Index channel = unit.item * direct_channels, token = unit.segment.first + round;
        const Index width = std::min(direct_channels, D - channel), t = past[unit.row()] + round;
        const Index near =
            filter.levels().empty() ? t + 1 : t % block + std::min(t / block, Index{1}) * block + 1;
        const View<const S, 2> taps =
            filter.filter().taps().slice(axis::time, 0, std::min(near, filter.filter().length()));
        S* const to = &y(token, channel);
        direct_sum<S>({old, u.slice(axis::time, token, 1), t}, taps, channel, width, to, worker);
        const auto add = [](Batch a, Batch value) { return a + value; };
        for (const auto& level : filter.levels()) {
          const Index row = level.sum_row(t / level.block) + t % level.block;
          simd::map<S>(width, to, add, to, &sums(unit.row(), row, channel));
        }
      });
}

/// Makes the sums follow the tokens of one round.
template <class S>
void spread_advance(const View<const S, 3>& history, const View<const Index, 1>& past,
                    const SpreadFilter<S>& filter, const View<S, 3>& sums, Index round,
                    const Call& call) {
  constexpr Index cost = 64 * SpreadFilter<S>::group;  // of a token: about
  const Index groups = ceil_div(history.extent(axis::channel), SpreadFilter<S>::group);
  const Index levels = static_cast<Index>(filter.levels().size());
  const auto work_of = [&](const Segment& segment) {
    const Index tokens = tokens_of_round(segment, round);
    return tokens == 0 ? SegmentWork{} : SegmentWork{levels * groups, tokens * cost};
  };
  for_each_unit(call, spread_cost_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    const Index seen = past[unit.row()] + round;
    const auto& level = filter.levels()[static_cast<std::size_t>(unit.item % levels)];
    spread_share<S>(unit.row_of(history), seen, seen + tokens_of_round(unit.segment, round), level,
                    unit.item / levels, unit.row_of(sums), worker);
  });
}

}  // namespace detail

/// `online_conv` whose work is the same for nearly all tokens: sums [B, filter.rows(), D].
///
/// O(log² V + t / V log V) a token and channel, V the longest block, and no token costs much more.
/// A partition of the filter as in Gardner 1995, Efficient convolution without input-output delay,
/// with blocks that are only added where no level above or below does.
template <class S>
void spread_conv(In<S, 2> u, In<S, 3> history, In<Index, 1> past, const SpreadFilter<S>& filter,
                 Out<S, 3> sums, View<S, 2> y, const Call& call) {
  detail::check_long_conv<S>(u, history, past, filter.filter(), y);
  detail::check_online<S>(history, past, filter.filter(), sums, call);
  Expect{"spread_conv"}.shape("sums", sums, {sums.extent(0), filter.rows(), sums.extent(2)});
  if (y.empty()) return;
  detail::reserve_steps<S>(2 * filter.longest(), call);
  Index rounds = 1;
  for (const Segment& segment : call.segments()) {
    if (segment.form == Form::recurrent) rounds = std::max(rounds, segment.count);
  }
  for (Index round = 0; round < rounds; ++round) {
    detail::spread_outputs<S>(u, history, past, filter, sums, y, round, call);
    detail::spread_advance<S>(history, past, filter, sums, round, call);
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
