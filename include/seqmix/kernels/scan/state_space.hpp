#pragma once

#include <algorithm>
#include <complex>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/scan/cauchy.hpp"
#include "seqmix/kernels/scan/discretization.hpp"
#include "seqmix/kernels/transform/fft.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// The tokens whose inputs and outputs lie packed in the first-level cache.
inline constexpr Index scan_tokens = 64;
/// The registers of channels that one unit of a single token handles.
inline constexpr Index step_blocks = 8;
/// Half of the tokens that one transform convolves, counted from a segment's own first one: the
/// same for any T, so that no bit depends on how time is cut at multiples of `scan_tokens`.
inline constexpr Index transform_half = scan_tokens / 2;
/// Updates of states that are worth a task, and those that a single token's costs: its terms come
/// from memory.
inline constexpr Index state_space_updates_per_task = Index{1} << 15, step_update_cost = 8;

}  // namespace detail

/// The discrete linear systems of D channels, each of N pairs of conjugate states. Immutable,
/// copies share.
template <class S>
class StateSpace {
 public:
  /// `system(channel)` gives each channel's `DiscreteSystem`, all of one form and size.
  StateSpace(Index channels, Index states, bool low_rank, auto&& system)
      : channels_(channels), low_rank_(low_rank) {
    using T = StateSpaceTerms;
    Tensor<double, 4> exact = blocks_of<double>(states);
    for (Index d = 0; d < channels; ++d) {
      const DiscreteSystem from = system(d);
      const auto to =
          exact.view()[d / simd::lanes<double>].at(axis::channel, d % simd::lanes<double>);
      const auto put = [&](Index term, const std::vector<std::complex<double>>& numbers) {
        for (Index n = 0; n < states; ++n) {
          to(n, term) = numbers[static_cast<std::size_t>(n)].real();
          to(n, term + 1) = numbers[static_cast<std::size_t>(n)].imag();
        }
      };
      put(T::F, from.F), put(T::B, from.B), put(T::C, from.C);
      if (low_rank) put(T::G, from.G), put(T::M, from.M);
    }
    auto data = std::make_shared<Data>();
    if constexpr (std::is_same_v<S, double>) {
      data->exact = std::move(exact);
    } else {
      data->rounded = blocks_of<S>(states);
      for (Index d = 0; d < channels; ++d) {
        copy(exact.view()[d / simd::lanes<double>].at(axis::channel, d % simd::lanes<double>),
             data->rounded.view()[d / simd::lanes<S>].at(axis::channel, d % simd::lanes<S>));
      }
      data->exact = std::move(exact);
    }
    data_ = std::move(data);
  }

  Index channels() const { return channels_; }
  Index states() const { return data_->exact.extent(1); }
  bool low_rank() const { return low_rank_; }
  /// [N, `StateSpaceTerms`, lanes] of the channels in one register; those that do not exist are 0.
  View<const S, 3> terms(Index block) const {
    if constexpr (std::is_same_v<S, double>) {
      return data_->exact[block];
    } else {
      return data_->rounded[block];
    }
  }

  /// Of the transforms that convolve `transform_half` taps with two pieces of as many tokens.
  const FftPlan<S>& plan() const { return data_->plan; }
  /// The first `transform_half` numbers of the impulse responses of the channels in one register:
  /// h [half, lanes]. In double: an error of a tap would be one of every token.
  void taps(Index block, const View<S, 2>& h, const Call& call) const {
    constexpr Index lanes = simd::lanes<double>;
    auto scratch = call.scratch<double>();
    const auto exact = scratch(detail::transform_half, lanes);
    constexpr Index parts = simd::lanes<S> / lanes;
    for (Index part = 0; part < parts; ++part) {
      const View<const double, 3> terms = std::as_const(data_->exact)[block * parts + part];
      if (low_rank_) {
        cauchy_taps<double>(terms, data_->taps_plan, exact, call);
      } else {
        vandermonde_taps<double>(terms, exact, call);
      }
      copy(exact, h.slice(axis::channel, part * lanes, lanes));
    }
  }

 private:
  // A register of channels lies together: [blocks, N, `StateSpaceTerms`, lanes].
  struct Data {
    Tensor<double, 4> exact;
    Tensor<S, 4> rounded;  // empty where S is double
    FftPlan<S> plan{4 * detail::transform_half};
    FftPlan<double> taps_plan{2 * detail::transform_half};
  };
  template <class Number>
  Tensor<Number, 4> blocks_of(Index states) const {
    const Index count =
        low_rank_ ? StateSpaceTerms::low_rank_count : StateSpaceTerms::diagonal_count;
    return Tensor<Number, 4>({round_up(channels_, simd::lanes<S>) / simd::lanes<Number>, states,
                              count, simd::lanes<Number>});
  }
  Index channels_;
  bool low_rank_;
  std::shared_ptr<const Data> data_;
};

namespace detail {

/// The terms of one state, for a register of channels.
template <class S>
struct TermsOfState {
  const S* from;
  SEQMIX_ALWAYS_INLINE simd::Batch<S> operator()(Index i) const {
    return simd::load(from + i * simd::lanes<S>);
  }
};

/// x = F x + B u, sum += Re(C x) of one state; `term(i)` is its term i.
template <class S>
SEQMIX_ALWAYS_INLINE void advance_diagonal(auto&& term, const simd::Batch<S>& u, simd::Batch<S>& re,
                                           simd::Batch<S>& im, simd::Batch<S>& sum) {
  using T = StateSpaceTerms;
  const simd::Batch<S> next =
      simd::fma(term(T::F), re, simd::fnma(term(T::F + 1), im, term(T::B) * u));
  im = simd::fma(term(T::F), im, simd::fma(term(T::F + 1), re, term(T::B + 1) * u));
  re = next;
  sum = simd::fnma(term(T::C + 1), im, simd::fma(term(T::C), re, sum));
}

/// x = F x - G through + B u, (sum.re, sum.im) += (Re C Re x, Im C Im x) of one state.
template <class S>
SEQMIX_ALWAYS_INLINE void advance_low_rank(auto&& term, const simd::Batch<S>& u,
                                           const simd::Batch<S>& through, simd::Batch<S>& re,
                                           simd::Batch<S>& im, ComplexBatch<S>& sum) {
  using T = StateSpaceTerms;
  const simd::Batch<S> from_re = simd::fnma(term(T::G), through, term(T::B) * u);
  const simd::Batch<S> from_im = simd::fnma(term(T::G + 1), through, term(T::B + 1) * u);
  const simd::Batch<S> next = simd::fma(term(T::F), re, simd::fnma(term(T::F + 1), im, from_re));
  im = simd::fma(term(T::F), im, simd::fma(term(T::F + 1), re, from_im));
  re = next;
  sum.re = simd::fma(term(T::C), re, sum.re);
  sum.im = simd::fma(term(T::C + 1), im, sum.im);
}
/// (sum.re, sum.im) += (Re M Re x, Im M Im x) of one state.
template <class S>
SEQMIX_ALWAYS_INLINE void add_through(auto&& term, const simd::Batch<S>& re,
                                      const simd::Batch<S>& im, ComplexBatch<S>& sum) {
  using T = StateSpaceTerms;
  sum.re = simd::fma(term(T::M), re, sum.re), sum.im = simd::fma(term(T::M + 1), im, sum.im);
}

/// y += Re(C·x) over T tokens of one register of channels; states x [N, 2, lanes] advance.
/// Few states at a time stay in registers while all tokens pass: three hide the latency of their
/// chains.
template <Index States, class S>
void diagonal_scan(const S* terms, const S* u, Index T, S* x, S* y) {
  using Batch = simd::Batch<S>;
  constexpr Index lanes = simd::lanes<S>, count = StateSpaceTerms::diagonal_count;
  Batch term[States][count], re[States], im[States];
  unrolled<States>([&](auto i) {
    unrolled<count>([&](auto j) { term[i][j] = simd::load(terms + (i * count + j) * lanes); });
    re[i] = simd::load(x + 2 * i * lanes), im[i] = simd::load(x + (2 * i + 1) * lanes);
  });
  for (Index t = 0; t < T; ++t) {
    const Batch in = simd::load(u + t * lanes);
    Batch sum = simd::load(y + t * lanes);
    unrolled<States>([&](auto i) {
      advance_diagonal<S>([&](Index j) { return term[i][j]; }, in, re[i], im[i], sum);
    });
    simd::store(y + t * lanes, sum);
  }
  unrolled<States>([&](auto i) {
    simd::store(x + 2 * i * lanes, re[i]), simd::store(x + (2 * i + 1) * lanes, im[i]);
  });
}

/// The same of systems with a low rank part, token by token: each reads all states.
template <class S>
void low_rank_scan(const View<const S, 3>& terms, const S* u, Index T, S* x, S* y) {
  using Batch = simd::Batch<S>;
  constexpr Index lanes = simd::lanes<S>;
  const ComplexBatch<S> zero{Batch(S(0)), Batch(S(0))};
  const auto each_state = [&](auto&& body) {
    for (Index n = 0; n < terms.extent(0); ++n) {
      body(TermsOfState<S>{&terms(n, 0, 0)}, x + 2 * n * lanes);
    }
  };
  ComplexBatch<S> through = zero;  // Re(M·x) of the last token, in two parts
  each_state([&](auto&& term, const S* state) {
    add_through<S>(term, simd::load(state), simd::load(state + lanes), through);
  });
  for (Index t = 0; t < T; ++t) {
    const Batch in = simd::load(u + t * lanes), entering = through.re - through.im;
    ComplexBatch<S> sum{simd::load(y + t * lanes), Batch(S(0))};
    through = zero;
    each_state([&](auto&& term, S* state) {
      Batch re = simd::load(state), im = simd::load(state + lanes);
      advance_low_rank<S>(term, in, entering, re, im, sum);
      simd::store(state, re), simd::store(state + lanes, im);
      add_through<S>(term, re, im, through);
    });
    simd::store(y + t * lanes, sum.re - sum.im);
  }
}

/// A state without its subnormal numbers.
template <class S>
SEQMIX_ALWAYS_INLINE void store_flushed(const simd::Batch<S>& re, const simd::Batch<S>& im,
                                        S* to_re, S* to_im, auto lane_count) {
  simd::store<S>(to_re, simd::flush_subnormal<S>(re), lane_count);
  simd::store<S>(to_im, simd::flush_subnormal<S>(im), lane_count);
}

/// One token of the registers of channels from `first` on, `width` channels, by the sums of the
/// scans. State by state, as the rows of the state lie: the rows of one register would share few
/// sets of the cache.
template <class S>
void state_space_step(const StateSpace<S>& system, Index first, Index width, const S* u,
                      const S* skip, const View<S, 3>& state, S* y, const Call& call) {
  using Batch = simd::Batch<S>;
  constexpr Index lanes = simd::lanes<S>;
  const View<const S, 3> terms = system.terms(first);
  const Index blocks = ceil_div(width, lanes), N = terms.extent(0), block_size = terms.size();
  u += first * lanes, skip += first * lanes, y += first * lanes;
  auto scratch = call.scratch<S>();
  const auto in = scratch(blocks, lanes);
  const auto through = scratch(blocks, Index{2}, lanes), sum = scratch(blocks, Index{2}, lanes);
  // body(term, re, im, offset, lane_count) for each state of each register
  const auto each_state = [&](auto&& body) {
    for (Index n = 0; n < N; ++n) {
      S* const re = &state(n, 0, first * lanes);
      S* const im = &state(n, 1, first * lanes);
      TermsOfState<S> term{&terms(n, 0, 0)};
      simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
        body(term, re + i, im + i, i, lane_count);
        term.from += block_size;
      });
    }
  };
  simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
    const Batch token = simd::load(u + i, lane_count), zero(S(0));
    simd::store(in.data() + i, token);
    store_complex<S>(sum.data() + 2 * i, {simd::load(skip + i, lane_count) * token, zero});
    store_complex<S>(through.data() + 2 * i, {zero, zero});
  });
  if (system.low_rank()) {
    each_state([&](auto& term, const S* re, const S* im, Index i, auto lane_count) {
      auto total = load_complex<S>(through.data() + 2 * i);
      add_through<S>(term, simd::load(re, lane_count), simd::load(im, lane_count), total);
      store_complex<S>(through.data() + 2 * i, total);
    });
    each_state([&](auto& term, S* to_re, S* to_im, Index i, auto lane_count) {
      Batch re = simd::load(to_re, lane_count), im = simd::load(to_im, lane_count);
      const auto entering = load_complex<S>(through.data() + 2 * i);
      auto total = load_complex<S>(sum.data() + 2 * i);
      advance_low_rank<S>(term, simd::load(in.data() + i), entering.re - entering.im, re, im,
                          total);
      store_complex<S>(sum.data() + 2 * i, total);
      store_flushed<S>(re, im, to_re, to_im, lane_count);
    });
  } else {
    each_state([&](auto& term, S* to_re, S* to_im, Index i, auto lane_count) {
      Batch re = simd::load(to_re, lane_count), im = simd::load(to_im, lane_count);
      Batch total = simd::load(sum.data() + 2 * i);
      advance_diagonal<S>(term, simd::load(in.data() + i), re, im, total);
      simd::store(sum.data() + 2 * i, total);
      store_flushed<S>(re, im, to_re, to_im, lane_count);
    });
  }
  simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
    const auto total = load_complex<S>(sum.data() + 2 * i);
    simd::store(y + i, total.re - total.im, lane_count);
  });
}

/// y += Re(C·x) over T tokens of one register of channels, few states after the other.
template <class S>
void diagonal_scans(const View<const S, 3>& terms, const S* u, Index T, S* x, S* y) {
  const Index N = terms.extent(0);
  for (Index n = 0, count = 0; n < N; n += count) {
    const Index left = N - n;
    count = left == 4 ? 2 : std::min<Index>(left, 3);
    const S* const from = &terms(n, 0, 0);
    S* const state = x + 2 * n * simd::lanes<S>;
    if (count == 3) {
      diagonal_scan<3, S>(from, u, T, state, y);
    } else if (count == 2) {
      diagonal_scan<2, S>(from, u, T, state, y);
    } else {
      diagonal_scan<1, S>(from, u, T, state, y);
    }
  }
}

/// y += Re(C·x) over T tokens, u and y [T, lanes], states x [N, 2, lanes], which they leave without
/// subnormal numbers.
template <class S>
void state_space_scan(const StateSpace<S>& system, Index block, const S* u, Index T, S* x, S* y) {
  const View<const S, 3> terms = system.terms(block);  // [N, terms, lanes]
  system.low_rank() ? low_rank_scan<S>(terms, u, T, x, y) : diagonal_scans<S>(terms, u, T, x, y);
  for (Index i = 0; i < 2 * terms.extent(0); ++i, x += simd::lanes<S>) {
    simd::store<S>(x, simd::flush_subnormal<S>(simd::load(x)));
  }
}

/// One register of channels of one segment: the state, and packed tokens in and out.
template <class S>
struct StateSpaceRow {
  View<const S, 2> u;  // [T, D]
  View<S, 3> state;    // [N, 2, D]
  View<S, 2> y;        // [T, D]
  const S* skip;       // [D]
  Index block, width;
  Index channel() const { return block * simd::lanes<S>; }

  void load_state(S* x) const {
    for (Index i = 0; i < 2 * state.extent(0); ++i) {
      simd::store(x + i * simd::lanes<S>, simd::load(&state(i / 2, i % 2, channel()), width));
    }
  }
  void store_state(const S* x) const {
    for (Index i = 0; i < 2 * state.extent(0); ++i) {
      simd::store(&state(i / 2, i % 2, channel()), simd::load(x + i * simd::lanes<S>), width);
    }
  }
  /// in = u, out = skip ⊙ u of tokens [first, first + count).
  void load_tokens(Index first, Index count, S* in, S* out) const {
    const simd::Batch<S> factor = simd::load(skip + channel(), width);
    for (Index t = 0; t < count; ++t, in += simd::lanes<S>, out += simd::lanes<S>) {
      const simd::Batch<S> token = simd::load(&u(first + t, channel()), width);
      simd::store(in, token), simd::store(out, factor * token);
    }
  }
  void store_tokens(Index first, Index count, const S* out) const {
    for (Index t = 0; t < count; ++t, out += simd::lanes<S>) {
      simd::store(&y(first + t, channel()), simd::load(out), width);
    }
  }
};

/// All tokens of a segment by the recurrence.
template <class S>
void scan_row(const StateSpace<S>& system, const StateSpaceRow<S>& row, const Call& call) {
  constexpr Index lanes = simd::lanes<S>;
  const Index T = row.y.extent(0);
  auto scratch = call.scratch<S>();
  const auto x = scratch(system.states(), Index{2}, lanes);  // [N, 2, lanes]
  const auto in = scratch(std::min(T, scan_tokens), lanes);
  const auto out = scratch(std::min(T, scan_tokens), lanes);
  row.load_state(x.data());
  for (Index first = 0; first < T; first += scan_tokens) {
    const Index count = std::min(scan_tokens, T - first);
    row.load_tokens(first, count, in.data(), out.data());
    state_space_scan(system, row.block, in.data(), count, x.data(), out.data());
    row.store_tokens(first, count, out.data());
  }
  row.store_state(x.data());
}

/// The Fourier transform of `transform_half` taps and as many zeros, divided by its length.
template <class S>
void transform_taps(const StateSpace<S>& system, Index block, const View<S, 2>& spectrum,
                    const Call& call) {
  constexpr Index lanes = simd::lanes<S>, half = transform_half;
  auto scratch = call.scratch<S>();
  const auto h = scratch(half, lanes);
  system.taps(block, h, call);
  fill(spectrum, 0);
  const simd::Batch<S> scale(S(1) / static_cast<S>(2 * half));
  for (Index l = 0; l < half; ++l) simd::store(&spectrum(l, 0), scale * simd::load(&h(l, 0)));
  system.plan().forward(spectrum.data());
}

/// All tokens of a segment by convolution with the taps whose spectrum is given. Two pieces of
/// `transform_half` tokens are the real and the imaginary part of one transform. What a piece adds
/// to later ones enters through the state, which the recurrence advances.
template <class S>
void transform_row(const StateSpace<S>& system, const View<const S, 2>& spectrum,
                   const StateSpaceRow<S>& row, const Call& call) {
  constexpr Index lanes = simd::lanes<S>, width = FftPlan<S>::width, half = transform_half;
  const Index T = row.y.extent(0), N = system.states();
  auto scratch = call.scratch<S>();
  const auto x = scratch(N, Index{2}, lanes), before = scratch(N, Index{2}, lanes);
  const auto z = scratch(2 * half, width);  // [2 half, {re, im} of all lanes]
  const auto in = scratch(2 * half, lanes), out = scratch(2 * half, lanes);
  const auto unused = scratch(half, lanes), silence = scratch(half, lanes);
  fill(silence, 0), fill(unused, 0);
  row.load_state(x.data());
  for (Index first = 0; first < T; first += 2 * half) {
    const Index count = std::min(2 * half, T - first);
    row.load_tokens(first, count, in.data(), out.data());
    if (count == 1) {  // as where it is a segment of its own
      state_space_scan<S>(system, row.block, in.data(), count, x.data(), out.data());
      row.store_tokens(first, count, out.data());
      continue;
    }
    fill(z, 0);
    for (Index t = 0; t < count; ++t) {
      simd::store(&z(t % half, t / half * lanes), simd::load(&in(t, 0)));
    }
    system.plan().forward(z.data());
    for (Index k = 0; k < 2 * half; ++k) {
      const auto a = load_complex<S>(&z(k, 0)), b = load_complex<S>(&spectrum(k, 0));
      store_complex<S>(&z(k, 0),
                       {simd::fnma(a.im, b.im, a.re * b.re), simd::fma(a.re, b.im, a.im * b.re)});
    }
    system.plan().inverse(z.data());
    for (Index begin = 0; begin < count; begin += half) {
      const Index tokens = std::min(half, count - begin);
      std::copy_n(x.data(), x.size(), before.data());
      state_space_scan<S>(system, row.block, silence.data(), tokens, before.data(), &out(begin, 0));
      state_space_scan<S>(system, row.block, &in(begin, 0), tokens, x.data(), unused.data());
    }
    for (Index t = 0; t < count; ++t) {
      simd::store(&out(t, 0), simd::load(&out(t, 0)) + simd::load(&z(t % half, t / half * lanes)));
    }
    row.store_tokens(first, count, out.data());
  }
  row.store_state(x.data());
}

}  // namespace detail

/// x_t = Ā x_{t-1} + B̄ u_t, y_t = Re(C·x_t) + skip ⊙ u_t for each channel, Ā diagonal or diagonal
/// minus a product of rank 1.
///
/// u, y: [T, D]; y may be u. skip: [D]. state: [B, N, {re, im}, D], whose rows the segments read,
/// then advance. The recurrence, O(T N D), gives the same bits for any split of a sequence, and is
/// the faster of two algorithms at any shape: the state must be advanced in any case, and with
/// channels in lanes the output is a quarter of that work or less. Convolution with the impulse
/// response, by transforms of 64 tokens from a segment's first one on, runs in parallel segments
/// where the call's algorithm is `chunked`, with the same bits for any cut of a segment at
/// multiples of 64; the two agree to c eps |h| |u|. A NaN reaches all tokens of its transform.
/// Numbers of the state below the smallest normal one become zero after each 64 tokens and each
/// segment.
template <class S>
void state_space(In<S, 2> u, const StateSpace<S>& system, In<S, 1> skip, Out<S, 4> state,
                 View<S, 2> y, const Call& call) {
  const Index T = y.extent(0), D = y.extent(1), N = system.states();
  const Expect expect{"state_space"};
  expect.rows("y", y, {T, system.channels()}), expect.rows("u", u, y.shape());
  expect.rows("skip", skip, {D}), expect.rows("state", state, {state.extent(0), N, 2, D});
  if (y.empty()) return;
  constexpr Index lanes = simd::lanes<S>;
  const Index blocks = ceil_div(D, lanes);
  const auto row = [&](const Unit& unit) {
    return detail::StateSpaceRow<S>{unit.tokens_of(u), unit.row_of(state),
                                    unit.tokens_of(y), skip.data(),
                                    unit.item,         std::min(lanes, D - unit.item * lanes)};
  };
  const auto in_transforms = [&](const Segment& segment) {
    return call.algorithm() == Algorithm::chunked && segment.form == Form::parallel &&
           segment.count > 1;
  };
  const auto work_of = [&](const Segment& segment) {
    if (in_transforms(segment)) return SegmentWork{};
    if (segment.count > 1) return SegmentWork{blocks, segment.count * N * lanes};
    return SegmentWork{ceil_div(blocks, detail::step_blocks),
                       detail::step_update_cost * detail::step_blocks * N * lanes};
  };
  for_each_unit(call, detail::state_space_updates_per_task, work_of,
                [&](const Unit& unit, const Call& worker) {
                  if (unit.tokens() > 1) return detail::scan_row(system, row(unit), worker);
                  const Index first = unit.item * detail::step_blocks, token = unit.segment.first;
                  detail::state_space_step<S>(
                      system, first, std::min(detail::step_blocks * lanes, D - first * lanes),
                      &u(token, 0), skip.data(), unit.row_of(state), &y(token, 0), worker);
                });
  if (std::ranges::none_of(call.segments(), in_transforms)) return;
  // All segments share the taps of a register of channels.
  call.parallel_for(blocks, [&](Index block, const Call& worker) {
    auto scratch = worker.scratch<S>();
    const auto spectrum = scratch(2 * detail::transform_half, FftPlan<S>::width);
    detail::transform_taps(system, block, spectrum, worker);
    for (const Segment& segment : call.segments()) {
      if (!in_transforms(segment)) continue;
      detail::transform_row<S>(system, spectrum, row(Unit{segment, block}), worker);
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
