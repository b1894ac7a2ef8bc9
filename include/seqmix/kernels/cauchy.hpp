#pragma once

#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "seqmix/core/context.hpp"
#include "seqmix/kernels/fft.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Where the numbers of a discrete system (`DiscreteSystem`) lie in its terms [N, count, D]: real
/// parts, the imaginary ones behind them, channels in lanes.
struct StateSpaceTerms {
  static constexpr Index F = 0, B = 2, C = 4, G = 6, M = 8;
  static constexpr Index diagonal_count = 6, low_rank_count = 10;
};

/// The impulse responses h_l = Re(C·F^l B) of diagonal systems, a Vandermonde product.
///
/// terms: [N, 6, lanes] of as many channels as there are lanes. h: [L, lanes].
template <class S>
void vandermonde_taps(In<S, 3> terms, View<S, 2> h, Context& context) {
  using Batch = simd::Batch<S>;
  using T = StateSpaceTerms;
  const Index N = terms.extent(0);
  auto scratch = context.scratch<S>();
  const auto powers = scratch(N, Index{2}, simd::lanes<S>);  // [N, 2, lanes], C F^l B
  const auto at = [&](Index n, Index term) { return simd::load(&terms(n, term, 0)); };
  for (Index n = 0; n < N; ++n) {
    const Batch b_re = at(n, T::B), b_im = at(n, T::B + 1), c_re = at(n, T::C),
                c_im = at(n, T::C + 1);
    simd::store(&powers(n, 0, 0), simd::fnma(b_im, c_im, b_re * c_re));
    simd::store(&powers(n, 1, 0), simd::fma(b_re, c_im, b_im * c_re));
  }
  for (Index l = 0; l < h.extent(0); ++l) {
    Batch sum(S(0));
    for (Index n = 0; n < N; ++n) {
      const Batch re = simd::load(&powers(n, 0, 0)), im = simd::load(&powers(n, 1, 0));
      const Batch f_re = at(n, T::F), f_im = at(n, T::F + 1);
      sum = sum + re;
      simd::store(&powers(n, 0, 0), simd::fnma(im, f_im, re * f_re));
      simd::store(&powers(n, 1, 0), simd::fma(re, f_im, im * f_re));
    }
    simd::store(&h(l, 0), sum);
  }
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
void cauchy_spectrum(In<S, 3> terms, Index L, View<S, 3> spectrum, Context& context) {
  using Batch = simd::Batch<S>;
  using T = StateSpaceTerms;
  constexpr Index lanes = simd::lanes<S>,
                  pairs[4][2] = {{T::C, T::B}, {T::C, T::G}, {T::M, T::B}, {T::M, T::G}};
  const Index N = terms.extent(0);
  const auto at = [&](Index n, Index term) { return simd::load(&terms(n, term, 0)); };
  auto scratch = context.scratch<S>();
  // Re(a b) and Re(a b conj F): the numerator of a state and its conjugate is their first minus ω
  // times their second.
  const auto numerators = scratch(N, Index{8}, lanes);
  for (Index n = 0; n < N; ++n) {
    const Batch f_re = at(n, T::F), f_im = at(n, T::F + 1);
    detail::unrolled<4>([&](auto i) {
      const Batch a_re = at(n, pairs[i][0]), a_im = at(n, pairs[i][0] + 1);
      const Batch b_re = at(n, pairs[i][1]), b_im = at(n, pairs[i][1] + 1);
      const Batch re = simd::fnma(a_im, b_im, a_re * b_re);
      const Batch im = simd::fma(a_re, b_im, a_im * b_re);
      simd::store(&numerators(n, 2 * i, 0), re);
      simd::store(&numerators(n, 2 * i + 1, 0), simd::fma(im, f_im, re * f_re));
    });
  }
  const auto times = [](const detail::ComplexBatch<S>& a, const detail::ComplexBatch<S>& b) {
    return detail::ComplexBatch<S>{simd::fnma(a.im, b.im, a.re * b.re),
                                   simd::fma(a.re, b.im, a.im * b.re)};
  };
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
      const auto shared = reciprocal(times(left, right));
      detail::unrolled<4>([&](auto i) {
        const Batch a = simd::load(&numerators(n, 2 * i, 0));
        const Batch b = simd::load(&numerators(n, 2 * i + 1, 0));
        first[i] = {simd::fma(a, shared.re, first[i].re), simd::fma(a, shared.im, first[i].im)};
        second[i] = {simd::fma(b, shared.re, second[i].re), simd::fma(b, shared.im, second[i].im)};
      });
    }
    detail::ComplexBatch<S> r[4];
    detail::unrolled<4>([&](auto i) {
      const auto turned = times(w, second[i]);
      r[i] = {first[i].re - turned.re, first[i].im - turned.im};
    });
    const auto turned = times(w, r[3]);
    const auto correction =
        times(times(w, times(r[1], r[2])), reciprocal({one + turned.re, turned.im}));
    simd::store(&spectrum(k, 0, 0), r[0].re - correction.re);
    simd::store(&spectrum(k, 1, 0), r[0].im - correction.im);
  }
}

/// The impulse responses h_l = Re(C·Ā^l B), l < L, of systems with Ā = diag(F) - G M, from their
/// generating function.
///
/// terms: [N, 10, lanes] of as many channels as there are lanes. h: [L, lanes]; L = plan.points().
template <class S>
void cauchy_taps(In<S, 3> terms, const FftPlan<S>& plan, View<S, 2> h, Context& context) {
  using Batch = simd::Batch<S>;
  using T = StateSpaceTerms;
  constexpr Index lanes = simd::lanes<S>;
  const Index N = terms.extent(0), L = plan.points();
  if (h.shape() != Shape<2>{L, lanes}) {
    throw ShapeError("cauchy_taps: h has shape " + h.shape().text() + ", expected " +
                     Shape<2>{L, lanes}.text());
  }
  auto scratch = context.scratch<S>();
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
  cauchy_spectrum<S>(cut, L, spectrum, context);
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
