#pragma once

#include <cstdint>

#include "seqmix/core/platform.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd::detail {

/// What math.hpp knows of a scalar type: its format and its minimax polynomials (Remez, in 60
/// digits), lowest power first. The relative error of the rounded polynomials is below half a unit
/// in the last place.
template <class S>
struct Coefficients;

template <>
struct Coefficients<float> {
  using Bits = std::uint32_t;
  static constexpr int fraction_bits = 23;
  static constexpr int bias = 127;

  // n ln2_high is exact for every exponent n.
  static constexpr float ln2_high = 0x1.62e4p-1F, ln2_low = 0x1.7f7d1cp-20F;

  /// e^r on [-ln2 / 16, ln2].
  static constexpr float exp[] = {1.0F,           1.0F,           0x1.00001ep-1F, 0x1.554a44p-3F,
                                  0x1.567e2ep-5F, 0x1.040b74p-7F, 0x1.ec2b2ep-10F};
  /// e^r on [-ln2 / 2, ln2 / 2].
  static constexpr float centred_exp[] = {
      1.0F, 1.0F, 0x1.fffffap-2F, 0x1.5553fep-3F, 0x1.5558bcp-5F, 0x1.127402p-7F, 0x1.6ab226p-10F};
  /// 2^r on [-1/16, 1].
  static constexpr float exp2[] = {1.0F,           0x1.62e432p-1F,  0x1.ebfbfep-3F, 0x1.c6a0b2p-5F,
                                   0x1.3c53fcp-7F, 0x1.4bf21ap-10F, 0x1.b7a25cp-13F};
  /// 2^r on [-1/2, 1/2].
  static constexpr float centred_exp2[] = {1.0F,           0x1.62e43p-1F,  0x1.ebfbdap-3F,
                                           0x1.c6aed4p-5F, 0x1.3b2dbcp-7F, 0x1.5f456cp-10F,
                                           0x1.41d314p-13F};
  /// (e^r - 1 - r) / r² on [-ln2 / 2, ln2 / 2].
  static constexpr float expm1[] = {0x1.fffffep-2F, 0x1.5554aap-3F, 0x1.55579ep-5F, 0x1.122c86p-7F,
                                    0x1.6ab23ap-10F};
  /// (log(1 + f) - f) / f² on [sqrt(1/2) - 1, sqrt(2) - 1].
  static constexpr float log1p[] = {-0x1.fffff8p-2F, 0x1.55555p-2F,   -0x1.000426p-2F,
                                    0x1.99a3f4p-3F,  -0x1.542762p-3F, 0x1.227124p-3F,
                                    -0x1.0f37a4p-3F, 0x1.084986p-3F,  -0x1.3831b6p-4F};
  /// (Φ(t) - 1/2) / t in t² for t on [0, slope_end], Φ the normal distribution.
  static constexpr float slope_end = 0.75F;
  static constexpr float slope[] = {0x1.988454p-2F, -0x1.10582cp-4F, 0x1.46c622p-7F,
                                    -0x1.35aa92p-10F, 0x1.afc180p-14F};
  /// t e^(t²/2) (1 - Φ(t)) in (t - pole) / (t + pole) for t on [slope_end, tail_end], where
  /// e^(-tail_end²/2) is below the smallest normal number.
  static constexpr float pole = 3.0F, tail_end = 14.0F;
  static constexpr float tail[] = {0x1.754a76p-2F, 0x1.c20d30p-4F,   -0x1.1e04b6p-3F,
                                   0x1.76478ap-4F, -0x1.d8cf6ap-6F,  -0x1.c7d722p-10F,
                                   0x1.03de9ap-8F, -0x1.381ef8p-15F, -0x1.1efb7cp-11F};
};

template <>
struct Coefficients<double> {
  using Bits = std::uint64_t;
  static constexpr int fraction_bits = 52;
  static constexpr int bias = 1023;

  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;

  static constexpr double exp[] = {
      1.0,
      1.0,
      0x1.000000000005ep-1,
      0x1.5555555554979p-3,
      0x1.55555554cb46dp-5,
      0x1.1111113c94211p-7,
      0x1.6c16b631309f5p-10,
      0x1.a01ba08839404p-13,
      0x1.9ff564c6231acp-16,
      0x1.73e28b7c180cdp-19,
      0x1.16a5cda3ca51dp-22,
      0x1.27abb8e15f871p-25,
  };
  static constexpr double centred_exp[] = {
      1.0,
      1.0,
      0x1.0000000000012p-1,
      0x1.555555555548fp-3,
      0x1.555555554eb5fp-5,
      0x1.11111111337b1p-7,
      0x1.6c16c1892eb7ep-10,
      0x1.a01a01078ff6fp-13,
      0x1.a0198e55dedb1p-16,
      0x1.71df4fdbe110cp-19,
      0x1.28b732e2c92a9p-22,
      0x1.ad611d3c8b677p-26,
  };
  static constexpr double exp2[] = {
      1.0,
      0x1.62e42fefa39f4p-1,
      0x1.ebfbdff82c564p-3,
      0x1.c6b08d7045c8fp-5,
      0x1.3b2ab6fc377dcp-7,
      0x1.5d87fe751dee6p-10,
      0x1.43090fc41f6c4p-13,
      0x1.ffcd0ff7ab1bep-17,
      0x1.62aab57481f77p-20,
      0x1.b7091ac9d5d8ap-24,
      0x1.cc16dbec2f07dp-28,
      0x1.4a621c7aa8144p-31,
  };
  static constexpr double centred_exp2[] = {
      1.0,
      0x1.62e42fefa39efp-1,
      0x1.ebfbdff82c5adp-3,
      0x1.c6b08d7049fd1p-5,
      0x1.3b2ab6fb9f412p-7,
      0x1.5d87fe78cf228p-10,
      0x1.43091310bf90fp-13,
      0x1.ffcbfba7c836cp-17,
      0x1.62bfc3c1835ecp-20,
      0x1.b526787220677p-24,
      0x1.e620fbd262ce0p-28,
      0x1.e7aa2cb8a3888p-32,
  };
  static constexpr double expm1[] = {
      0x1.0000000000005p-1,  0x1.5555555555539p-3,  0x1.55555555522a5p-5,  0x1.1111111118feep-7,
      0x1.6c16c17ee0ffcp-10, 0x1.a01a017501c62p-13, 0x1.a019a75e15b0cp-16, 0x1.71de8824dc3e7p-19,
      0x1.28a1f20c3540cp-22, 0x1.ae6b90785a4d5p-26,
  };
  static constexpr double log1p[] = {
      -0x1.0000000000003p-1, 0x1.5555555555467p-2, -0x1.fffffffffde6dp-3, 0x1.99999999bf359p-3,
      -0x1.55555556f6353p-3, 0x1.24924914e992cp-3, -0x1.fffffed9e63bep-4, 0x1.c71c77ab2b6c6p-4,
      -0x1.9999d1d80ff47p-4, 0x1.745c91b718309p-4, -0x1.554f133871203p-4, 0x1.3b173336e092dp-4,
      -0x1.24fb042a7376cp-4, 0x1.115e159789d3cp-4, -0x1.f86ccdf5a168ep-5, 0x1.d3fe5dad19f3bp-5,
      -0x1.e52da01e87bcep-5, 0x1.0b6a7d80679e1p-4, -0x1.b5aa1ce0a9a97p-5, 0x1.4da1d5b47e3d6p-6,
  };
  static constexpr double slope_end = 0.75;
  static constexpr double slope[] = {
      0x1.9884533d43651p-2,  -0x1.1058377e2cee0p-4,  0x1.46d0429769087p-7,  -0x1.37403f6b92107p-10,
      0x1.e42b0d4747402p-14, -0x1.3ce8f883963dfp-17, 0x1.658990614c54fp-21, -0x1.620ba6057e814p-25,
      0x1.364d5a2932a0ap-29, -0x1.b5c05e1f6af56p-34,
  };
  static constexpr double pole = 4.0, tail_end = 39.0;
  static constexpr double tail[] = {
      0x1.82b4bb8c94dcep-2,  0x1.2dda040d62d05p-4,   -0x1.c41d6bcaf854fp-4,  0x1.9adc525a906eep-4,
      -0x1.024df8efd2931p-4, 0x1.b0ffe01d88b50p-6,   -0x1.691976fb6bfaep-8,  -0x1.e4abd36b5b2d4p-11,
      0x1.ce76f71cd24c3p-11, -0x1.99ff438cc3dd7p-15, -0x1.e8a4fdf003b6fp-14, 0x1.16d319d0fd409p-16,
      0x1.2cda1ecb1562cp-16, -0x1.5dc9bddd680acp-19, -0x1.b81cc35ab3a11p-19, 0x1.be7dbeb77caa5p-23,
      0x1.5eccd0d0e31e0p-21, 0x1.43b3a433fc84ep-25,  -0x1.0e14abddd986bp-23, -0x1.003f02467b74fp-26,
      0x1.31f699b04d073p-26,
  };
};

}  // namespace simd::detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
