#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// The channels that one unit of a scan takes through time together.
inline constexpr Index scan_channels = 512;
/// Multiply-adds of numbers that are worth a task of a scan.
inline constexpr Index scan_cost_per_task = Index{1} << 16;

/// A register of numbers of one part each, or two: the real and the imaginary one.
template <class S, Index planes>
struct ScanNumbers {
  simd::Batch<S> part[planes];
};

/// h_t = f_t(h_{t-1}) for the channels of h [T, planes, N], from the rows of `state` [B, planes, N]
/// on, which become the last of them. `step_of(unit, token, first)` is f of a token of the call for
/// the channels from `first` on: f(i, lane_count, h) gives those from first + i on. `cost` is that
/// of a token and channel, in multiply-adds.
template <Index planes, class S>
void scan_channels_of(const View<S, 3>& state, const View<S, 3>& h, Index cost, const Call& call,
                      auto&& step_of) {
  const Index N = h.extent(axis::channel);
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{ceil_div(N, scan_channels), segment.count * scan_channels * cost};
  };
  for_each_unit(call, scan_cost_per_task, work_of, [&](const Unit& unit, const Call&) {
    const Index first = unit.item * scan_channels, width = std::min(scan_channels, N - first);
    const View<S, 2> last = unit.row_of(state);
    const S* from[planes];
    for (Index p = 0; p < planes; ++p) from[p] = &last(p, first);
    for (Index token = unit.segment.first; token < unit.segment.first + unit.tokens(); ++token) {
      S* to[planes];
      for (Index p = 0; p < planes; ++p) to[p] = &h(token, p, first);
      const auto step = step_of(unit, token, first);
      simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
        ScanNumbers<S, planes> number;
        for (Index p = 0; p < planes; ++p) number.part[p] = simd::load<S>(from[p] + i, lane_count);
        number = step(i, lane_count, number);
        for (Index p = 0; p < planes; ++p) {
          simd::store<S>(to[p] + i, simd::flush_subnormal<S>(number.part[p]), lane_count);
        }
      });
      std::copy_n(to, planes, from);
    }
    for (Index p = 0; p < planes; ++p) std::copy_n(from[p], width, &last(p, first));
  });
}

/// What is the same for each token, as a view of all of them.
template <class T, Index Rank>
View<T, Rank + 1> each_token(const View<T, Rank>& view, Index tokens) {
  View<T, Rank + 1> one = view.insert(axis::time);
  Shape<Rank + 1> shape = one.shape(), strides = one.strides();
  shape[0] = tokens, strides[0] = 0;
  return {view.data(), shape, strides};
}

}  // namespace detail

/// The real diagonal scan, for each channel h_t = a_t ⊙ h_{t-1} + b_t.
///
/// a: [T, D], the factors of each token, or [D], those of all; b, h: [T, D]; state: [B, D], h_{-1},
/// whose rows the segments read, then advance. h may be a or b. Last dimensions are contiguous. A
/// shape that does not fit is a `ShapeError`.
///
/// Channels are lanes; each takes one fused multiply-add a token, in order of time, so that any
/// split of a sequence gives the same bits. No scratch. Numbers below the smallest normal one
/// become zero. O(T D): moving a, b and h costs more than the arithmetic, to which a scan over
/// pairs (a, b) in log T rounds, as for parallel hardware, would only add.
///
/// Gates are factors here, not their logarithms: `elementwise` takes exp of a log decay, and with
/// it what b needs, sqrt(1 - a²) = sqrt(-expm1(2 log a)), where 1 - a would lose digits. So a layer
/// is projections, a pointwise lambda and this: EMA a = 1 - α, b = α x; minGRU a = 1 - z, b = z h';
/// HGRN a = f, b = (1 - f) i.
///
/// Martin & Cundy 2018, arXiv:1709.04057; Qin et al. 2023, arXiv:2311.04823.
template <class S>
void diagonal_scan(In<S, 2> a, In<S, 2> b, Out<S, 2> state, View<S, 2> h, const Call& call) {
  const Index T = h.extent(0), D = h.extent(1);
  const Expect expect{"diagonal_scan"};
  expect.rows("h", h, {T, D});
  expect.rows("a", a, {T, D});
  expect.rows("b", b, {T, D});
  expect.rows("state", state, {state.extent(0), D});
  if (h.empty()) return;
  using Numbers = detail::ScanNumbers<S, 1>;
  constexpr Index cost = 2;
  detail::scan_channels_of<1, S>(
      state.insert(axis::channel), h.insert(axis::channel), cost, call,
      [&](const Unit&, Index token, Index first) {
        return [a = &a(token, first), b = &b(token, first)](Index i, auto lane_count,
                                                            const Numbers& last) {
          return Numbers{simd::fma<S>(simd::load<S>(a + i, lane_count), last.part[0],
                                      simd::load<S>(b + i, lane_count))};
        };
      });
}
template <class S>
void diagonal_scan(In<S, 1> a, In<S, 2> b, Out<S, 2> state, View<S, 2> h, const Call& call) {
  Expect{"diagonal_scan"}.rows("a", a, {h.extent(1)});
  diagonal_scan(detail::each_token(a, h.extent(0)), b, state, h, call);
}

/// The same of complex numbers, planes of real and imaginary parts: four multiply-adds a channel
/// and token.
///
/// a: [T, 2, N] or [2, N]; b, h: [T, 2, N]; state: [B, 2, N]. Orvieto et al. 2023,
/// arXiv:2303.06349; Smith et al. 2022, arXiv:2208.04933.
template <class S>
void diagonal_scan(In<S, 3> a, In<S, 3> b, Out<S, 3> state, View<S, 3> h, const Call& call) {
  const Index T = h.extent(0), N = h.extent(2);
  const Expect expect{"diagonal_scan"};
  expect.rows("h", h, {T, 2, N});
  expect.rows("a", a, {T, 2, N});
  expect.rows("b", b, {T, 2, N});
  expect.rows("state", state, {state.extent(0), 2, N});
  if (h.empty()) return;
  using Batch = simd::Batch<S>;
  using Numbers = detail::ScanNumbers<S, 2>;
  constexpr Index cost = 4;
  detail::scan_channels_of<2, S>(state, h, cost, call, [&](const Unit&, Index token, Index first) {
    return [a_re = &a(token, 0, first), a_im = &a(token, 1, first), b_re = &b(token, 0, first),
            b_im = &b(token, 1, first)](Index i, auto lane_count, const Numbers& last) {
      const Batch re = simd::load<S>(a_re + i, lane_count);
      const Batch im = simd::load<S>(a_im + i, lane_count);
      const Batch in_re = simd::load<S>(b_re + i, lane_count);
      const Batch in_im = simd::load<S>(b_im + i, lane_count);
      return Numbers{simd::fnma<S>(im, last.part[1], simd::fma<S>(re, last.part[0], in_re)),
                     simd::fma<S>(im, last.part[0], simd::fma<S>(re, last.part[1], in_im))};
    };
  });
}
template <class S>
void diagonal_scan(In<S, 2> a, In<S, 3> b, Out<S, 3> state, View<S, 3> h, const Call& call) {
  Expect{"diagonal_scan"}.rows("a", a, {2, h.extent(2)});
  diagonal_scan(detail::each_token(a, h.extent(0)), b, state, h, call);
}

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
  const Index T = h.extent(0), D = h.extent(1), B = state.extent(0);
  const Expect expect{"rg_lru_scan"};
  expect.rows("h", h, {T, D});
  expect.rows("x", x, {T, D});
  expect.rows("input_gate", input_gate, {T, D});
  expect.rows("recurrent_gate", recurrent_gate, {T, D});
  expect.rows("rate", rate, {D});
  expect.rows("past", past, {B});
  expect.rows("state", state, {B, D});
  if (h.empty()) return;
  using Batch = simd::Batch<S>;
  using Numbers = detail::ScanNumbers<S, 1>;
  constexpr Index cost = 32;  // about: four functions
  detail::scan_channels_of<1, S>(
      state.insert(axis::channel), h.insert(axis::channel), cost, call,
      [&](const Unit& unit, Index token, Index first) {
        const bool starts = token == unit.segment.first && past[unit.row()] == 0;
        return [starts, x = &x(token, first), input_gate = &input_gate(token, first),
                recurrent_gate = &recurrent_gate(token, first),
                rate = &rate(first)](Index i, auto lane_count, const Numbers& last) {
          const Batch r = simd::sigmoid<S>(simd::load<S>(recurrent_gate + i, lane_count));
          const Batch gate = simd::sigmoid<S>(simd::load<S>(input_gate + i, lane_count));
          const Batch in = simd::load<S>(x + i, lane_count) * gate;
          if (starts) return Numbers{in};
          const Batch log_a = -simd::load<S>(rate + i, lane_count) * r;
          const Batch scale = simd::sqrt<S>(-simd::expm1<S>(log_a + log_a));
          return Numbers{simd::fma<S>(simd::exp<S>(log_a), last.part[0], in * scale)};
        };
      });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
