#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "seqmix/kernels/linear_state_chunked.hpp"
#include "seqmix/kernels/linear_state_recurrent.hpp"
#include "seqmix/kernels/linear_state_tiles.hpp"

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

/// Tokens that all heads take before the next: their rows share pages of memory, whose addresses
/// the processor then still knows.
inline constexpr Index block_tokens = 512;

/// The chunkwise form at a precision of the matrix units.
template <class S, class Decay>
void linear_state_chunked_at([[maybe_unused]] Precision units,
                             const LinearStateUnit<S, Decay>& unit, Context& context) {
#if SEQMIX_MATRIX_UNITS
  if constexpr (std::is_same_v<S, float> && !Decay::by_channel) {
    if (units != Precision::fp32) return linear_state_on_tiles(unit, context);
  }
#endif
  linear_state_chunked(unit, context);
}

}  // namespace detail

/// S_t = diag(exp g_t) S_{t-1} + k_tᵀ v_t,  o_t = scale q_t S_t,  g_t <= 0 the log decay; what a
/// token reads under `ReadBefore` and `ReadBeforeWithBonus` stands there.
///
/// q, k: [B, T, G, K]; v, o: [B, T, H, V]; state: [B, H, K, V], read, then advanced by the T
/// tokens. Head h reads group h / (H / G). Last dimensions are contiguous; o shares no number with
/// the rest. Numbers of the state below the smallest normal one become zero.
///
/// `Form::recurrent` is the literal recurrence: three operations a token and number of the state,
/// o_t summed by one chain of fma over ascending channels. `Form::parallel` takes chunks of
/// 4 tokens, 2.25 operations a number, unless the context's algorithm is the
/// recurrence. Those of float numbers with decays by head run on matrix units as the context's
/// precision says. Both serve any T. The bits depend neither on threads nor on the batch, nor on a
/// cut into calls of a multiple of 64 tokens. A shape that does not fit is a `ShapeError`. Yang et
/// al. 2023, arXiv:2312.06635, section 4; Dao & Gu 2024, arXiv:2405.21060, section 6.
template <Form form, class S, class Decay>
void linear_state(In<S, 4> q, In<S, 4> k, In<S, 4> v, const Decay& decay, double scale,
                  Out<S, 4> state, View<S, 4> o, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      const auto part = [&](const auto& view) {
        return view.template slice<1>(piece.first, piece.count);
      };
      linear_state<form>(part(q), part(k), part(v), decay.of(piece), scale,
                         state.template slice<0>(piece.row, 1), part(o), context);
    });
  }
  const Index B = o.extent(0), T = o.extent(1), H = o.extent(2), V = o.extent(3);
  const Index G = q.extent(2), K = q.extent(3);
  if (G <= 0 || H % G != 0) {
    throw ShapeError("linear_state: " + std::to_string(H) + " heads do not divide into " +
                     std::to_string(G) + " groups");
  }
  detail::check_operand("o", o, {B, T, H, V});
  detail::check_operand("q", q, {B, T, G, K});
  detail::check_operand("k", k, {B, T, G, K});
  detail::check_operand("v", v, {B, T, H, V});
  detail::check_operand("state", state, {B, H, K, V});
  decay.check({B, T, H, K});
  if (o.empty()) return;
  if (H > 1 && T > detail::block_tokens) {
    for (Index first = 0; first < T; first += detail::block_tokens) {
      const Piece block{0, first, std::min(detail::block_tokens, T - first)};
      const auto part = [&](const auto& view) {
        return view.template slice<1>(block.first, block.count);
      };
      linear_state<form>(part(q), part(k), part(v), decay.of(block), scale, state, part(o),
                         context);
    }
    return;
  }

  Precision units = detail::matrix_precision<S>(context);
  if (context.algorithm() == Algorithm::automatic &&
      !detail::units_pay<Decay>(units, H / G, K, V)) {
    units = Precision::fp32;
  }
  const bool chunked = form == Form::parallel && context.algorithm() != Algorithm::recurrent;
  const auto run_unit = [&](const detail::StateUnit& at, Context& worker) {
    const detail::LinearStateUnit<S, Decay> unit{{.q = q[at.row].template at<1>(at.group),
                                                  .k = k[at.row].template at<1>(at.group),
                                                  .v = at.values_of(v),
                                                  .state = at.state_of(state),
                                                  .o = at.values_of(o),
                                                  .scale = static_cast<S>(scale)},
                                                 decay,
                                                 at.row,
                                                 at.head};
    if (chunked) {
      linear_state_chunked_at(units, unit, worker);
    } else {
      linear_state_recurrent(unit, worker);
    }
  };
  detail::for_each_state_unit(state.shape(), G, T, detail::state_tile_columns<S>, context,
                              run_unit);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
