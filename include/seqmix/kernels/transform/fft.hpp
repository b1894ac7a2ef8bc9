#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/core/tensor.hpp"
#include "seqmix/simd/batch.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// One complex number in each lane.
template <class S>
struct ComplexBatch {
  simd::Batch<S> re, im;
};

template <class S>
SEQMIX_ALWAYS_INLINE ComplexBatch<S> load_complex(const S* from) {
  return {simd::load<S>(from), simd::load<S>(from + simd::lanes<S>)};
}
template <class S>
SEQMIX_ALWAYS_INLINE void store_complex(S* to, const ComplexBatch<S>& value) {
  simd::store<S>(to, value.re);
  simd::store<S>(to + simd::lanes<S>, value.im);
}

/// a w, or a conj(w), w = (factor[0], factor[1]) in all lanes.
template <bool Conjugate, class S>
SEQMIX_ALWAYS_INLINE ComplexBatch<S> turn(const ComplexBatch<S>& a, const S* factor) {
  const auto re = simd::broadcast<S>(factor[0]), im = simd::broadcast<S>(factor[1]);
  if constexpr (Conjugate) {
    return {simd::fma(a.im, im, a.re * re), simd::fnma(a.re, im, a.im * re)};
  } else {
    return {simd::fnma(a.im, im, a.re * re), simd::fma(a.re, im, a.im * re)};
  }
}

/// (a, b) = (a + ω b, a - ω b), ω = exp(-2πi Eighths / 8), or its conjugate for the inverse.
template <Index Eighths, bool Inverse, class S>
SEQMIX_ALWAYS_INLINE void combine(ComplexBatch<S>& a, ComplexBatch<S>& b) {
  const ComplexBatch<S> x = a, y = b;
  if constexpr (Eighths == 0) {
    a = {x.re + y.re, x.im + y.im};
    b = {x.re - y.re, x.im - y.im};
  } else if constexpr (Eighths == 1) {
    const auto root = simd::broadcast<S>(static_cast<S>(1 / std::numbers::sqrt2));
    const auto sum = y.re + y.im, difference = y.im - y.re;
    if constexpr (Inverse) {
      a = {simd::fnma(root, difference, x.re), simd::fma(root, sum, x.im)};
      b = {simd::fma(root, difference, x.re), simd::fnma(root, sum, x.im)};
    } else {
      a = {simd::fma(root, sum, x.re), simd::fma(root, difference, x.im)};
      b = {simd::fnma(root, sum, x.re), simd::fnma(root, difference, x.im)};
    }
  } else if constexpr (Eighths == 2) {
    a = {x.re + y.im, x.im - y.re};
    b = {x.re - y.im, x.im + y.re};
    if constexpr (Inverse) std::swap(a, b);
  } else {  // ω³ is the conjugate of -ω
    combine<Eighths - 2, !Inverse>(a, b);
    std::swap(a, b);
  }
}

/// body(0), ..., body(Count - 1), the arguments being constants.
template <Index Count>
SEQMIX_ALWAYS_INLINE void unrolled(auto&& body) {
  [&]<Index... i>(std::integer_sequence<Index, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<Index, i>{}), ...);
  }
  (std::make_integer_sequence<Index, Count>{});
}

constexpr Index reversed_bits(Index value, Index bits) {
  Index result = 0;
  for (; bits > 0; --bits, value >>= 1) result = 2 * result + (value & 1);
  return result;
}

/// The discrete Fourier transform of Radix numbers, given in bit-reversed order. `First` > 1 leaves
/// out the stages that combine less than 2 First numbers.
template <Index Radix, bool Inverse, Index First = 1, class S>
SEQMIX_ALWAYS_INLINE void butterfly(ComplexBatch<S>* x) {
  if constexpr (First < Radix) {
    unrolled<Radix / 2>([&](auto i) __attribute__((always_inline)) {
      constexpr Index k = i % First, at = i / First * 2 * First + k;
      combine<k * 4 / First, Inverse>(x[at], x[at + First]);
    });
    butterfly<Radix, Inverse, 2 * First>(x);
  }
}

}  // namespace detail

/// The twiddle factors of Fourier transforms of one length, and the transforms.
///
/// A transform works on `lanes` channels at once. A real sequence of n numbers a channel is seen as
/// n / 2 complex points, z_j = x_{2j} + i x_{2j+1}; a point is `width` numbers, the real parts of
/// all channels, then the imaginary ones. The forward transform leaves frequency k at position
/// `frequency(k)` (its bits reversed, whatever the radices) and the inverse starts from there, so
/// that no pass only moves data. Nothing is scaled.
///
/// Decimation in frequency (forward) and in time (inverse) by passes of radix 8 and 4, finished
/// block by block, so that all but the first passes stay in cache. Van Loan 1992, Computational
/// Frameworks for the Fast Fourier Transform, sections 1.9 and 2.2.
template <class S>
class FftPlan {
 public:
  /// The numbers of one point.
  static constexpr Index width = 2 * simd::lanes<S>;

  /// `length`: real numbers of a sequence, a power of two >= 2. Factors are computed in double.
  explicit FftPlan(Index length) : points_(length / 2) {
    if (length < 2 || !std::has_single_bit(static_cast<std::size_t>(length))) {
      throw ShapeError("FftPlan: got length " + std::to_string(length) +
                       ", expected a power of two of at least 2");
    }
    Index count = 0;
    for (Index size = points_; size > 1; size /= passes_.back().radix) {
      const Index radix = size == 2 ? 2 : size == 4 || size == 16 ? 4 : 8;
      passes_.push_back({radix, size, count});
      count += 2 * (radix - 1) * passes_.back().step();
    }
    factors_ = Tensor<S, 1>({count});
    S* to = factors_.data();
    for (const Pass& pass : passes_) {
      for (Index j = 0; j < pass.step(); ++j) {
        for (Index m = 1; m < pass.radix; ++m) {
          const double angle =
              -2 * std::numbers::pi * static_cast<double>(j * m) / static_cast<double>(pass.size);
          *to++ = static_cast<S>(std::cos(angle)), *to++ = static_cast<S>(std::sin(angle));
        }
      }
    }
  }

  Index length() const { return 2 * points_; }
  Index points() const { return points_; }
  /// The frequency at `position` after `forward`, and the position of a frequency.
  Index frequency(Index position) const {
    return detail::reversed_bits(position, std::countr_zero(static_cast<std::size_t>(points_)));
  }

  /// Z_k = Σ_j z_j exp(-2πi jk / points), in place.
  void forward(S* z) const { forward(z, 0); }
  /// z_j = Σ_k Z_k exp(2πi jk / points), in place.
  void inverse(S* z) const { inverse(z, 0); }

  /// The position of the first frequency of a pair: see `filter`.
  Index position(Index entry) const {
    if (entry == 0) return 0;
    if (entry == points_ / 2) return 1;
    return entry + static_cast<Index>(std::bit_floor(static_cast<std::size_t>(entry)));
  }

  /// Tokens [first, first + count) of a sequence, `lanes` numbers each, `stride` numbers apart.
  template <class T>
  struct Rows {
    T* data;
    Index stride;
    Index first;
    Index count;
  };

  /// Transforms the rows `in` (the others are zero), multiplies, transforms back into the rows
  /// `out`. z: scratch of `points() * width` numbers. length() >= 64.
  ///
  /// A product of real sequences joins frequencies k and -k, which lie mirrored within each octave
  /// of positions: product(a, b, entry, count) gets the addresses of `count` points that ascend
  /// from a and of their mirror images, which descend from b. Entries number the pairs: 0 is
  /// frequency 0, which is its own image, as is the last one, points() / 2.
  void filter(const Rows<const S>& in, const Rows<S>& out, S* z, auto&& product) const {
    const auto get = [&](Index point) -> detail::ComplexBatch<S> {
      const auto row = [&](Index r) {
        return r >= 0 && r < in.count ? simd::load<S>(in.data + r * in.stride)
                                      : simd::Batch<S>(S(0));
      };
      const Index first = 2 * point - in.first;
      return {row(first), row(first + 1)};
    };
    const auto put = [&](Index point, const detail::ComplexBatch<S>& value) {
      const auto row = [&](Index r, const simd::Batch<S>& numbers) {
        if (r >= 0 && r < out.count) simd::store<S>(out.data + r * out.stride, numbers);
      };
      const Index first = 2 * point - out.first;
      row(first, value.re), row(first + 1, value.im);
    };
    // The first radix is 8 at these lengths. Rows in the first half alone take half of the work.
    if (in.first + in.count <= points_) {
      forward_butterflies<8, true, true>(z, passes_.front(), get);
    } else {
      forward_butterflies<8, true>(z, passes_.front(), get);
    }
    filter_children(z, 0, product);
    if (out.first + out.count <= points_) {
      inverse_butterflies<8, true, true>(z, passes_.front(), put);
    } else {
      inverse_butterflies<8, true>(z, passes_.front(), put);
    }
  }

 private:
  struct Pass {
    Index radix;
    Index size;     // points of a block before the pass
    Index factors;  // where its twiddle factors begin: [step()][radix - 1] complex numbers
    Index step() const { return size / radix; }
  };

  /// Two blocks of this size fit the first-level cache together; they are finished there.
  static constexpr Index leaf_points = (Index{1} << 14) / (width * static_cast<Index>(sizeof(S)));

  const Pass& pass(Index level) const { return passes_[static_cast<std::size_t>(level)]; }
  Index levels() const { return static_cast<Index>(passes_.size()); }
  Index block_points(Index level) const { return level == levels() ? 1 : pass(level).size; }

  static void with_radix(const Pass& pass, auto&& body) {
    switch (pass.radix) {
      case 8:
        return body(std::integral_constant<Index, 8>{});
      case 4:
        return body(std::integral_constant<Index, 4>{});
      default:
        return body(std::integral_constant<Index, 2>{});
    }
  }

  /// Bit-reversed place of a butterfly's number m.
  template <Index Radix>
  static constexpr Index leg(Index m) {
    return detail::reversed_bits(m, std::countr_zero(static_cast<std::size_t>(Radix)));
  }

  /// One forward pass over the block z, its points from get(point). `Half`: the upper half is zero.
  template <Index Radix, bool Turned, bool Half = false>
  void forward_butterflies(S* z, const Pass& pass, auto&& get) const {
    const Index step = Turned ? pass.step() : 1;
    const S* factor = factors_.data() + pass.factors;
    for (Index j = 0; j < step; ++j, factor += 2 * (Radix - 1)) {
      detail::ComplexBatch<S> x[Radix];
      detail::unrolled<Radix>([&](auto i) __attribute__((always_inline)) {
        if constexpr (Half && leg<Radix>(i) >= Radix / 2) {
          x[i] = x[i - 1];  // 0 was added to it
        } else {
          x[i] = get(j + leg<Radix>(i) * step);
        }
      });
      detail::butterfly<Radix, false, Half ? 2 : 1>(x);
      detail::unrolled<Radix>([&](auto m) __attribute__((always_inline)) {
        if constexpr (Turned && m > 0) x[m] = detail::turn<false>(x[m], factor + 2 * (m - 1));
        detail::store_complex(z + (j + leg<Radix>(m) * step) * width, x[m]);
      });
    }
  }

  /// One inverse pass over the block z, its points to put(point, value). `Half`: the lower half
  /// only.
  template <Index Radix, bool Turned, bool Half = false>
  void inverse_butterflies(const S* z, const Pass& pass, auto&& put) const {
    const Index step = Turned ? pass.step() : 1;
    const S* factor = factors_.data() + pass.factors;
    for (Index j = 0; j < step; ++j, factor += 2 * (Radix - 1)) {
      detail::ComplexBatch<S> x[Radix];
      detail::unrolled<Radix>([&](auto i) __attribute__((always_inline)) {
        constexpr Index m = leg<Radix>(i);
        x[i] = detail::load_complex<S>(z + (j + i * step) * width);
        if constexpr (Turned && m > 0) x[i] = detail::turn<true>(x[i], factor + 2 * (m - 1));
      });
      detail::butterfly<Radix, true>(x);
      detail::unrolled<Half ? Radix / 2 : Radix>([&](auto i) __attribute__((always_inline)) {
        put(j + i * step, x[i]);
      });
    }
  }

  /// The forward pass of `level` over `blocks` adjacent blocks.
  void forward_pass(S* z, Index level, Index blocks = 1) const {
    with_radix(pass(level), [&](auto radix) {
      for (; blocks > 0; --blocks, z += pass(level).size * width) {
        const auto get = [z](Index point) { return detail::load_complex<S>(z + point * width); };
        if (pass(level).step() > 1) {
          forward_butterflies<radix, true>(z, pass(level), get);
        } else {
          forward_butterflies<radix, false>(z, pass(level), get);
        }
      }
    });
  }
  void inverse_pass(S* z, Index level, Index blocks = 1) const {
    with_radix(pass(level), [&](auto radix) {
      for (; blocks > 0; --blocks, z += pass(level).size * width) {
        const auto put = [z](Index point, const detail::ComplexBatch<S>& value) {
          detail::store_complex(z + point * width, value);
        };
        if (pass(level).step() > 1) {
          inverse_butterflies<radix, true>(z, pass(level), put);
        } else {
          inverse_butterflies<radix, false>(z, pass(level), put);
        }
      }
    });
  }

  /// All passes from `level` on over one block of that level.
  void forward(S* z, Index level) const {
    const Index size = block_points(level);
    if (size <= leaf_points) {
      for (Index i = level; i < levels(); ++i) forward_pass(z, i, size / pass(i).size);
    } else {
      forward_pass(z, level);
      for (Index i = 0; i < size; i += block_points(level + 1)) forward(z + i * width, level + 1);
    }
  }
  void inverse(S* z, Index level) const {
    const Index size = block_points(level);
    if (size <= leaf_points) {
      for (Index i = levels(); i-- > level;) inverse_pass(z, i, size / pass(i).size);
    } else {
      for (Index i = 0; i < size; i += block_points(level + 1)) inverse(z + i * width, level + 1);
      inverse_pass(z, level);
    }
  }

  /// The rest of `filter` for the block at position 0 after its pass of `level`.
  void filter_children(S* z, Index level, auto&& product) const {
    const Index size = block_points(level + 1);
    filter_origin(z, level + 1, product);
    for (Index octave = 1; octave < pass(level).radix; octave *= 2) {
      for (Index i = 0; i < std::max<Index>(octave / 2, 1); ++i) {
        filter_pair(z + (octave + i) * size * width, z + (2 * octave - 1 - i) * size * width,
                    (octave + i) * size - octave * size / 2, level + 1, product);
      }
    }
  }
  void filter_origin(S* z, Index level, auto&& product) const {
    const Index size = block_points(level);
    if (size > leaf_points) {
      forward_pass(z, level);
      filter_children(z, level, product);
      inverse_pass(z, level);
      return;
    }
    forward(z, level);
    product(z, z, 0, 1);
    product(z + width, z + width, points_ / 2, 1);
    for (Index octave = 2; octave < size; octave *= 2) {
      product(z + octave * width, z + (2 * octave - 1) * width, octave / 2, octave / 2);
    }
    inverse(z, level);
  }
  /// A block and its mirror image, which may be the block itself (an octave); `entry` is its first.
  void filter_pair(S* a, S* b, Index entry, Index level, auto&& product) const {
    const Index size = block_points(level);
    const bool one = a == b;
    if (size > leaf_points) {
      const Index radix = pass(level).radix, step = pass(level).step();
      forward_pass(a, level);
      if (!one) forward_pass(b, level);
      for (Index i = 0; i < (one ? radix / 2 : radix); ++i) {
        filter_pair(a + i * step * width, b + (radix - 1 - i) * step * width, entry + i * step,
                    level + 1, product);
      }
      inverse_pass(a, level);
      if (!one) inverse_pass(b, level);
      return;
    }
    forward(a, level);
    if (!one) forward(b, level);
    product(a, b + (size - 1) * width, entry, one ? size / 2 : size);
    inverse(a, level);
    if (!one) inverse(b, level);
  }

  Index points_;
  std::vector<Pass> passes_;
  Tensor<S, 1> factors_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
