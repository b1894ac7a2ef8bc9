#pragma once

#include <algorithm>
#include <cmath>

#include "support/random.hpp"

namespace support {

/// Σ_{l <= t} h[d, l] u[b, t - l, d], as it is written.
template <class S>
seqmix::Tensor<long double, 3> literal_conv(const seqmix::View<const S, 3>& u,
                                            const seqmix::View<const S, 2>& taps) {
  seqmix::Tensor<long double, 3> y(u.shape());
  for (seqmix::Index b = 0; b < u.extent(0); ++b) {
    for (seqmix::Index t = 0; t < u.extent(1); ++t) {
      for (seqmix::Index d = 0; d < u.extent(2); ++d) {
        long double sum = 0;
        for (seqmix::Index l = 0; l <= std::min(t, taps.extent(1) - 1); ++l) {
          sum += static_cast<long double>(taps(d, l)) * static_cast<long double>(u(b, t - l, d));
        }
        y(b, t, d) = sum;
      }
    }
  }
  return y;
}

/// Long filters fade, as trained ones do.
template <class S>
seqmix::Tensor<S, 2> random_taps(seqmix::Index D, seqmix::Index L) {
  auto taps = random_tensor<S, 2>({D, L}, 17);
  for (seqmix::Index d = 0; d < D; ++d) {
    for (seqmix::Index l = 0; l < L; ++l) {
      taps(d, l) *=
          static_cast<S>(std::exp(-3.0 * static_cast<double>(l) / static_cast<double>(L)));
    }
  }
  return taps;
}

}  // namespace support
