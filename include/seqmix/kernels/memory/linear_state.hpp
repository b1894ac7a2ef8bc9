#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "seqmix/core/compiled.hpp"
#include "seqmix/kernels/memory/detail/linear_state_chunked.hpp"
#include "seqmix/kernels/memory/detail/linear_state_recurrent.hpp"
#include "seqmix/kernels/memory/detail/linear_state_tiles.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Whether chunks of float numbers with decays by head are faster on matrix units than in plain
/// arithmetic (measured with AVX-512 and AMX), a matter of the heads' shape alone: were it one of
/// T, the cut of a sequence into calls would change bits. Without decay and with keys of their own,
/// heads of 64 gain nothing in two terms.
template <class Decay>
constexpr bool units_pay(Precision units, Index heads_per_group, Index K, Index V) {
  constexpr bool decays = !std::is_base_of_v<NoDecay, Decay>;
  if (units == Precision::fp32 || K < 32 || V < 32) return false;
  return units == Precision::bf16 || decays || K >= 128 || (heads_per_group > 1 && K >= 64);
}

/// The chunkwise form at a precision of the matrix units.
template <class S, class Decay>
void linear_state_chunked_at([[maybe_unused]] Precision units,
                             const LinearStateUnit<S, Decay>& unit, const Call& call) {
#if SEQMIX_MATRIX_UNITS
  if constexpr (std::is_same_v<S, float> && !has_rows<Decay>) {
    if (units != Precision::fp32) return linear_state_on_tiles(unit, call);
  }
#endif
  linear_state_chunked(unit, call);
}

}  // namespace detail

/// S_t = diag(exp g_t) S_{t-1} + k_tᵀ v_t,  o_t = scale q_t S_t,  g_t <= 0 the log decay; with a
/// `ValueDecay` S_t = S_{t-1} diag(exp g_t) + k_tᵀ v_t. What a token reads under `ReadBefore` and
/// `ReadBeforeWithBonus` stands there.
///
/// q, k: [T, G, K]; v, o: [T, H, V]; state: [B, H, K, V], whose rows the segments of the call read,
/// then advance. Head h reads group h / (H / G). Last dimensions are contiguous; o shares no number
/// with the rest. Numbers of the state below the smallest normal one become zero.
///
/// A recurrent segment is the literal recurrence: three operations a token and number of the state,
/// o_t summed by one chain of fma over ascending channels. A parallel one takes chunks of 4 tokens,
/// 2.25 operations a number, unless the call's algorithm is the recurrence. Those of float numbers
/// with decays by head run on matrix units as the call's precision says; decays by key channel or
/// value column have no form there and take the chunks of 4. Both serve any T. A shape that does
/// not fit is a `ShapeError`. Yang et al. 2023, arXiv:2312.06635, section 4; Dao & Gu
/// 2024, arXiv:2405.21060, section 6.
template <class S, class Decay>
void linear_state(In<S, 3> q, In<S, 3> k, In<S, 3> v, const Decay& decay, double scale,
                  Out<S, 4> state, View<S, 3> o, const Call& call) {
  const Index T = o.extent(0), H = o.extent(1), V = o.extent(2), B = state.extent(0);
  const Index G = q.extent(1), K = q.extent(2);
  if (G <= 0 || H % G != 0) {
    throw ShapeError("linear_state: " + std::to_string(H) + " heads do not divide into " +
                     std::to_string(G) + " groups");
  }
  const Expect expect{"linear_state"};
  expect.rows("o", o, {T, H, V});
  expect.rows("q", q, {T, G, K});
  expect.rows("k", k, {T, G, K});
  expect.rows("v", v, {T, H, V});
  expect.rows("state", state, {B, H, K, V});
  if constexpr (detail::by_value<Decay>) {
    decay.check_values({T, H, V});
  } else {
    decay.check({T, H, K});
  }
  if (o.empty()) return;

  Precision units = detail::matrix_precision<S>(call);
  if (call.algorithm() == Algorithm::automatic && !detail::units_pay<Decay>(units, H / G, K, V)) {
    units = Precision::fp32;
  }
  const auto cut_of = [&](const Segment& segment) {
    return detail::cut_by_groups(call, segment, state.shape(), G, detail::state_tile_columns<S>);
  };
  detail::for_each_state_unit(
      state, call, cut_of, [&](const detail::StateUnit& at, const Call& worker) {
        const detail::LinearStateUnit<S, Decay> unit{{.q = at.tokens_of(q).at(axis::head, at.group),
                                                      .k = at.tokens_of(k).at(axis::head, at.group),
                                                      .v = at.values_of(v),
                                                      .state = at.state_of(state),
                                                      .o = at.values_of(o),
                                                      .scale = static_cast<S>(scale)},
                                                     decay,
                                                     at.segment.first,
                                                     at.head,
                                                     at.column};
        if (at.segment.form == Form::parallel && call.algorithm() != Algorithm::recurrent) {
          linear_state_chunked_at(units, unit, worker);
        } else {
          linear_state_recurrent(unit, worker);
        }
      });
}

#define SEQMIX_LINEAR_STATE(S, Decay)                                                             \
  void linear_state(In<S, 3>, In<S, 3>, In<S, 3>, const Decay<S>&, double, Out<S, 4>, View<S, 3>, \
                    const Call&)
SEQMIX_COMPILE(SEQMIX_LINEAR_STATE, ConstantDecay);
SEQMIX_COMPILE(SEQMIX_LINEAR_STATE, ScalarDecay);
SEQMIX_COMPILE(SEQMIX_LINEAR_STATE, VectorDecay);
SEQMIX_COMPILE(SEQMIX_LINEAR_STATE, ValueDecay);
#undef SEQMIX_LINEAR_STATE

SEQMIX_END_NAMESPACE
}  // namespace seqmix
