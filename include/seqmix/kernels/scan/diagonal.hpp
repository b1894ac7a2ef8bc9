#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/call.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// The channels that one unit of a scan handles.
inline constexpr Index scan_channels = 512;
/// Multiply-adds of numbers that are worth a task of a scan.
inline constexpr Index scan_cost_per_task = Index{1} << 16;

/// Throws unless `view` has the expected shape and a contiguous last dimension.
template <class T, Index Rank>
void check_scan(std::string_view kernel, std::string_view name, const View<T, Rank>& view,
                const std::type_identity_t<Shape<Rank>>& expected) {
  if (view.shape() == expected && (view.extent(Rank - 1) <= 1 || view.stride(Rank - 1) == 1)) {
    return;
  }
  throw ShapeError(std::string(kernel) + ": " + std::string(name) + " has shape " +
                   view.shape().text() + ", expected " + expected.text() +
                   ", the last dimension contiguous");
}

/// Calls `body(unit, first, width)` for groups of the D channels of each segment, in parallel;
/// `cost` is that of a token and channel, in multiply-adds.
void for_each_scan(Index D, Index cost, const Call& call, auto&& body) {
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{ceil_div(D, scan_channels), segment.count * scan_channels * cost};
  };
  for_each_unit(call, scan_cost_per_task, work_of, [&](const Unit& unit, const Call&) {
    const Index first = unit.item * scan_channels;
    body(unit, first, std::min(scan_channels, D - first));
  });
}

/// The factor and the input of one step of a scan.
template <class S>
struct ScanTerms {
  simd::Batch<S> a, b;
};

/// h_t = a_t h_{t-1} + b_t for `width` channels of h [T, D], from `state` on, which becomes the
/// last of them. `terms(t, i, lane_count)` gives a_t and b_t of the channels from i on.
template <class S>
void scan_channels_of(Index width, S* state, const View<S, 2>& h, auto&& terms) {
  const S* before = state;
  for (Index t = 0; t < h.extent(0); ++t) {
    S* const now = h.data() + t * h.stride(0);
    simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
      const ScanTerms<S> step = terms(t, i, lane_count);
      const simd::Batch<S> last = simd::load<S>(before + i, lane_count);
      simd::store<S>(now + i, simd::flush_subnormal<S>(simd::fma<S>(step.a, last, step.b)),
                     lane_count);
    });
    before = now;
  }
  std::copy_n(before, width, state);
}

}  // namespace detail

/// The scan of a real-gated linear recurrent unit; σ is the logistic function:
///
///   log a_t = -rate ⊙ σ(recurrent_gate_t)
///   h_t = a_t ⊙ h_{t-1} + sqrt(1 - a_t²) ⊙ σ(input_gate_t) ⊙ x_t
///
/// but h_0 = σ(input_gate_0) ⊙ x_0 at the first token of a sequence, where `past` is 0.
///
/// x, input_gate, recurrent_gate, h: [T, D]; rate: [D], >= 0; past: [B], the tokens before; state:
/// [B, D], whose rows the segments read, then advance. 1 - a² is -expm1(2 log a). h may be any of
/// the inputs. De et al. 2024, arXiv:2402.19427, eq. 1-4.
template <class S>
void rg_lru_scan(In<S, 2> x, In<S, 2> input_gate, In<S, 2> recurrent_gate, In<S, 1> rate,
                 In<Index, 1> past, Out<S, 2> state, View<S, 2> h, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index T = h.extent(0), D = h.extent(1), B = state.extent(0);
  detail::check_scan("rg_lru_scan", "h", h, {T, D});
  detail::check_scan("rg_lru_scan", "x", x, {T, D});
  detail::check_scan("rg_lru_scan", "input_gate", input_gate, {T, D});
  detail::check_scan("rg_lru_scan", "recurrent_gate", recurrent_gate, {T, D});
  detail::check_scan("rg_lru_scan", "rate", rate, {D});
  detail::check_scan("rg_lru_scan", "past", past, {B});
  detail::check_scan("rg_lru_scan", "state", state, {B, D});
  if (h.empty()) return;
  constexpr Index cost = 32;  // about: four functions
  detail::for_each_scan(D, cost, call, [&](const Unit& unit, Index first, Index width) {
    const bool starts = past[unit.row()] == 0;
    const auto to = unit.tokens_of(h).slice(axis::channel, first, width);
    detail::scan_channels_of<S>(
        width, &state(unit.row(), first), to, [&](Index t, Index i, auto lane_count) {
          const auto load = [&](const View<const S, 2>& from) {
            return simd::load<S>(&from(unit.segment.first + t, first + i), lane_count);
          };
          const Batch r = simd::sigmoid<S>(load(recurrent_gate));
          const Batch in = load(x) * simd::sigmoid<S>(load(input_gate));
          const Batch log_a = -simd::load<S>(&rate(first + i), lane_count) * r;
          const Batch scale = simd::sqrt<S>(-simd::expm1<S>(log_a + log_a));
          if (starts && t == 0) return detail::ScanTerms<S>{Batch(S(0)), in};
          return detail::ScanTerms<S>{simd::exp<S>(log_a), in * scale};
        });
  });
}

/// The complex diagonal scan with constant factors: h_t = lambda ⊙ h_{t-1} + b_t.
///
/// Numbers are planes of real and imaginary parts. lambda: [2, N]; h: [T, 2, N], holds b and
/// becomes h; state: [B, 2, N], h_{-1}, whose rows the segments read, then advance. Channels are
/// lanes; the same four multiply-adds a token, in order of time, so that any split of a sequence
/// gives the same bits.
template <class S>
void complex_scan(In<S, 2> lambda, Out<S, 3> state, View<S, 3> h, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index T = h.extent(0), N = h.extent(2);
  detail::check_scan("complex_scan", "h", h, {T, 2, N});
  detail::check_scan("complex_scan", "lambda", lambda, {2, N});
  detail::check_scan("complex_scan", "state", state, {state.extent(0), 2, N});
  if (h.empty()) return;
  constexpr Index cost = 4;
  detail::for_each_scan(N, cost, call, [&](const Unit& unit, Index first, Index width) {
    const S* const factor_re = &lambda(0, first);
    const S* const factor_im = &lambda(1, first);
    const View<S, 3> tokens = unit.tokens_of(h);
    const View<S, 2> hidden = unit.row_of(state);
    const S *last_re = &hidden(0, first), *last_im = &hidden(1, first);
    for (Index t = 0; t < unit.tokens(); ++t) {
      S *const now_re = &tokens(t, 0, first), *const now_im = &tokens(t, 1, first);
      simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
        const Batch a = simd::load<S>(factor_re + i, lane_count);
        const Batch b = simd::load<S>(factor_im + i, lane_count);
        const Batch re = simd::load<S>(last_re + i, lane_count);
        const Batch im = simd::load<S>(last_im + i, lane_count);
        const Batch next_re =
            simd::fnma<S>(b, im, simd::fma<S>(a, re, simd::load<S>(now_re + i, lane_count)));
        const Batch next_im =
            simd::fma<S>(b, re, simd::fma<S>(a, im, simd::load<S>(now_im + i, lane_count)));
        simd::store<S>(now_re + i, simd::flush_subnormal<S>(next_re), lane_count);
        simd::store<S>(now_im + i, simd::flush_subnormal<S>(next_im), lane_count);
      });
      last_re = now_re, last_im = now_im;
    }
    std::copy_n(last_re, width, &hidden(0, first));
    std::copy_n(last_im, width, &hidden(1, first));
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
