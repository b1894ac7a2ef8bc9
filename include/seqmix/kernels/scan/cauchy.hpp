#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/transform/fft.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Where the numbers of a discrete system (`DiscreteSystem`) lie in its terms [N, count, D]: real
/// parts, the imaginary ones behind them, channels in lanes.
struct StateSpaceTerms {
  static constexpr Index F = 0, B = 2, C = 4, G = 6, M = 8;
  static constexpr Index diagonal_count = 6, low_rank_count = 10;
};

namespace detail {

template <class S>
SEQMIX_ALWAYS_INLINE ComplexBatch<S> times(const ComplexBatch<S>& a, const ComplexBatch<S>& b) {
  return {simd::fnma(a.im, b.im, a.re * b.re), simd::fma(a.re, b.im, a.im * b.re)};
}

/// The states whose powers are raised together, and the rows of a tile of sums: as many chains and
/// sums as keep the arithmetic busy from registers.
inline constexpr Index vandermonde_states = 8, vandermonde_tile = 4;
/// The states of a few channels, a row of their powers.
template <class S>
using VandermondeRow = ComplexBatch<S>[vandermonde_states];
template <class S>
inline constexpr Index vandermonde_width = vandermonde_states* FftPlan<S>::width;

/// Writes `power` ratio^i to the rows i < count; `power` becomes the one after them.
template <class S>
void write_powers(VandermondeRow<S>& power, const VandermondeRow<S>& ratio, Index count, S* rows) {
  for (; count > 0; --count, rows += vandermonde_width<S>) {
    unrolled<vandermonde_states>([&](auto n) __attribute__((always_inline)) {
      power[n] = {simd::flush_subnormal<S>(power[n].re), simd::flush_subnormal<S>(power[n].im)};
      store_complex<S>(rows + n * FftPlan<S>::width, power[n]);
      power[n] = times<S>(power[n], ratio[n]);
    });
  }
}

/// sums[span j + i] += Re Σ_n far[j]_n near[i]_n for a tile of i and j.
template <class S>
void vandermonde_sums(const S* far, const S* near, Index span, S* sums) {
  using Batch = simd::Batch<S>;
  constexpr Index tile = vandermonde_tile, lanes = simd::lanes<S>, stride = vandermonde_width<S>;
  Batch sum[tile][tile];
  const auto each_sum = [&](auto&& body) __attribute__((always_inline)) {
    unrolled<tile>([&](auto j) __attribute__((always_inline)) {
      unrolled<tile>([&](auto i) __attribute__((always_inline)) {
        body(sum[j][i], sums + (j * span + i) * lanes);
      });
    });
  };
  each_sum([](Batch& s, const S* from) { s = simd::load(from); });
  for (Index n = 0; n < vandermonde_states; ++n, far += 2 * lanes, near += 2 * lanes) {
    ComplexBatch<S> b[tile];
    unrolled<tile>([&](auto i) { b[i] = load_complex<S>(near + i * stride); });
    unrolled<tile>([&](auto j) {
      const ComplexBatch<S> a = load_complex<S>(far + j * stride);
      unrolled<tile>([&](auto i) { sum[j][i] = simd::fma(a.re, b[i].re, sum[j][i]); });
      unrolled<tile>([&](auto i) { sum[j][i] = simd::fnma(a.im, b[i].im, sum[j][i]); });
    });
  }
  each_sum([](const Batch& s, S* to) { simd::store<S>(to, s); });
}

/// Of the four pairs a, b of each state Re(a b) and Re(a b conj F): the numerator of a state and
/// its conjugate is the first minus ω times the second.
///
/// terms: [N, 10, lanes]. numerators: [N, 8, lanes].
template <class S>
void write_numerators(const View<const S, 3>& terms, const View<S, 3>& numerators) {
  using Batch = simd::Batch<S>;
  using T = StateSpaceTerms;
  constexpr Index pairs[4][2] = {{T::C, T::B}, {T::C, T::G}, {T::M, T::B}, {T::M, T::G}};
  const auto at = [&](Index n, Index term) { return simd::load(&terms(n, term, 0)); };
  for (Index n = 0; n < terms.extent(0); ++n) {
    const Batch f_re = at(n, T::F), f_im = at(n, T::F + 1);
    unrolled<4>([&](auto i) {
      const Batch a_re = at(n, pairs[i][0]), a_im = at(n, pairs[i][0] + 1);
      const Batch b_re = at(n, pairs[i][1]), b_im = at(n, pairs[i][1] + 1);
      const Batch re = simd::fnma(a_im, b_im, a_re * b_re);
      const Batch im = simd::fma(a_re, b_im, a_im * b_re);
      simd::store(&numerators(n, 2 * i, 0), re);
      simd::store(&numerators(n, 2 * i + 1, 0), simd::fma(im, f_im, re * f_re));
    });
  }
}

}  // namespace detail

/// The impulse responses h_l = Re(C·F^l B) of diagonal systems, a Vandermonde product: with
/// l = span j + i, the sums of (C B F^(span j)) F^i over the states are a matrix product.
///
/// terms: [N, 6, lanes] of as many channels as there are lanes. h: [L, lanes].
template <class S>
void vandermonde_taps(In<S, 3> terms, View<S, 2> h, const Call& call) {
  using T = StateSpaceTerms;
  constexpr Index span = 32, tile = detail::vandermonde_tile, states = detail::vandermonde_states;
  constexpr Index lanes = simd::lanes<S>;
  const Index N = terms.extent(0), rows = round_up(ceil_div(h.extent(0), span), tile);
  auto scratch = call.scratch<S>();
  const auto near = scratch(span, detail::vandermonde_width<S>);  // [span, states, 2, lanes]
  const auto far = scratch(rows, detail::vandermonde_width<S>);   // [rows, states, 2, lanes]
  const auto sums = scratch(rows * span, lanes);
  fill(sums, 0);
  for (Index first = 0; first < N; first += states) {
    const simd::Batch<S> one(S(1)), zero(S(0));
    detail::VandermondeRow<S> power, start, step;
    detail::unrolled<states>([&](auto n) {
      const auto term = [&](Index i) {
        if (first + n >= N) return detail::ComplexBatch<S>{zero, zero};
        return detail::load_complex<S>(&terms(first + n, i, 0));
      };
      power[n] = {one, zero}, step[n] = term(T::F);
      start[n] = detail::times<S>(term(T::B), term(T::C));
    });
    detail::write_powers<S>(power, step, span, near.data());
    detail::write_powers<S>(start, power, rows, far.data());
    for (Index j = 0; j < rows; j += tile) {
      for (Index i = 0; i < span; i += tile) {
        detail::vandermonde_sums<S>(&far(j, 0), &near(i, 0), span, &sums(j * span + i, 0));
      }
    }
  }
  copy(sums.slice(axis::row, 0, h.extent(0)), h);
}

/// The generating function Σ_{l < L} h_l ω_k^l of systems diag(F) - G M, ω_k = exp(-2πi k / L), for
/// k = 0 .. L/2, by Cauchy sums.
///
///   r(a, b) = Σ a b / (1 - ω F) over all states
///   ĥ = r(C̃, B) - ω r(C̃, G) r(M, B) / (1 + ω r(M, G))
///
/// C̃ = C (1 - Ā^L) cuts the response after L tokens. A state and its conjugate have one common
/// denominator, whose reciprocal the four sums share. In the unit disk, unlike in the half-plane of
/// continuous time, no frequency is a pole: not the last one, k = L/2, either.
///
/// terms: [N, 10, lanes]; its C holds C̃. spectrum: [L/2 + 1, {re, im}, lanes].
template <class S>
void cauchy_spectrum(In<S, 3> terms, Index L, View<S, 3> spectrum, const Call& call) {
  using Batch = simd::Batch<S>;
  using T = StateSpaceTerms;
  const Index N = terms.extent(0);
  const auto at = [&](Index n, Index term) { return simd::load(&terms(n, term, 0)); };
  auto scratch = call.scratch<S>();
  const auto numerators = scratch(N, Index{8}, simd::lanes<S>);
  detail::write_numerators<S>(terms, numerators);
  const auto reciprocal = [](const detail::ComplexBatch<S>& a) {
    const Batch scale = Batch(S(1)) / simd::fma(a.im, a.im, a.re * a.re);
    return detail::ComplexBatch<S>{a.re * scale, -a.im * scale};
  };
  const Batch one(S(1));
  for (Index k = 0; k <= L / 2; ++k) {
    const double angle = -2 * std::numbers::pi * static_cast<double>(k) / static_cast<double>(L);
    const detail::ComplexBatch<S> w{Batch(static_cast<S>(std::cos(angle))),
                                    Batch(static_cast<S>(std::sin(angle)))};
    detail::ComplexBatch<S> first[4], second[4];
    detail::unrolled<4>([&](auto i) {
      first[i] = {Batch(S(0)), Batch(S(0))}, second[i] = first[i];
    });
    for (Index n = 0; n < N; ++n) {
      const Batch f_re = at(n, T::F), f_im = at(n, T::F + 1);
      const detail::ComplexBatch<S> left{simd::fma(w.im, f_im, simd::fnma(w.re, f_re, one)),
                                         simd::fnma(w.re, f_im, -w.im * f_re)};
      const detail::ComplexBatch<S> right{simd::fnma(w.im, f_im, simd::fnma(w.re, f_re, one)),
                                          simd::fma(w.re, f_im, -w.im * f_re)};
      const auto shared = reciprocal(detail::times<S>(left, right));
      detail::unrolled<4>([&](auto i) {
        const Batch a = simd::load(&numerators(n, 2 * i, 0));
        const Batch b = simd::load(&numerators(n, 2 * i + 1, 0));
        first[i] = {simd::fma(a, shared.re, first[i].re), simd::fma(a, shared.im, first[i].im)};
        second[i] = {simd::fma(b, shared.re, second[i].re), simd::fma(b, shared.im, second[i].im)};
      });
    }
    detail::ComplexBatch<S> r[4];
    detail::unrolled<4>([&](auto i) {
      const auto turned = detail::times<S>(w, second[i]);
      r[i] = {first[i].re - turned.re, first[i].im - turned.im};
    });
    const auto turned = detail::times<S>(w, r[3]);
    const auto correction = detail::times<S>(detail::times<S>(w, detail::times<S>(r[1], r[2])),
                                             reciprocal({one + turned.re, turned.im}));
    simd::store(&spectrum(k, 0, 0), r[0].re - correction.re);
    simd::store(&spectrum(k, 1, 0), r[0].im - correction.im);
  }
}

/// The impulse responses h_l = Re(C·Ā^l B), l < L, of systems with Ā = diag(F) - G M, from their
/// generating function.
///
/// terms: [N, 10, lanes] of as many channels as there are lanes. h: [L, lanes]; L = plan.points().
template <class S>
void cauchy_taps(In<S, 3> terms, const FftPlan<S>& plan, View<S, 2> h, const Call& call) {
  using Batch = simd::Batch<S>;
  using T = StateSpaceTerms;
  constexpr Index lanes = simd::lanes<S>;
  const Index N = terms.extent(0), L = plan.points();
  Expect{"cauchy_taps"}.shape("h", h, {L, lanes});
  auto scratch = call.scratch<S>();
  const auto cut = scratch(N, T::low_rank_count, lanes);  // the terms, C̃ for C
  const auto c = scratch(N, Index{2}, lanes);             // C Ā^l
  copy(terms, cut);
  copy(terms.template slice<1>(T::C, 2), c);
  const auto at = [&](Index n, Index term) { return simd::load(&cut(n, term, 0)); };
  for (Index l = 0; l < L; ++l) {
    Batch through(S(0));  // Re(C Ā^l G)
    for (Index n = 0; n < N; ++n) {
      through = simd::fma(simd::load(&c(n, 0, 0)), at(n, T::G), through);
      through = simd::fnma(simd::load(&c(n, 1, 0)), at(n, T::G + 1), through);
    }
    for (Index n = 0; n < N; ++n) {
      const Batch re = simd::load(&c(n, 0, 0)), im = simd::load(&c(n, 1, 0));
      const Batch f_re = at(n, T::F), f_im = at(n, T::F + 1);
      const Batch next_re = simd::fnma(im, f_im, re * f_re),
                  next_im = simd::fma(re, f_im, im * f_re);
      simd::store(&c(n, 0, 0), simd::fnma(through, at(n, T::M), next_re));
      simd::store(&c(n, 1, 0), simd::fnma(through, at(n, T::M + 1), next_im));
    }
  }
  for (Index n = 0; n < N; ++n) {
    for (Index part = 0; part < 2; ++part) {
      simd::store(&cut(n, T::C + part, 0), at(n, T::C + part) - simd::load(&c(n, part, 0)));
    }
  }
  const auto spectrum = scratch(L / 2 + 1, Index{2}, lanes);
  cauchy_spectrum<S>(cut, L, spectrum, call);
  const auto z = scratch(L, FftPlan<S>::width);
  const Batch scale(S(1) / static_cast<S>(L));
  for (Index k = 0; k < L; ++k) {  // frequency L - k is the conjugate of k
    const bool mirrored = k > L / 2;
    const S* from = &spectrum(mirrored ? L - k : k, 0, 0);
    const Batch re = scale * simd::load(from), im = scale * simd::load(from + lanes);
    detail::store_complex<S>(&z(plan.frequency(k), 0), {re, mirrored ? -im : im});
  }
  plan.inverse(z.data());
  for (Index l = 0; l < L; ++l) simd::store(&h(l, 0), simd::load(&std::as_const(z(l, 0))));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
