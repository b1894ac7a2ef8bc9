#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "seqmix/core/field.hpp"
#include "seqmix/core/numeric.hpp"
#include "seqmix/kernels/attention/block_masks.hpp"
#include "seqmix/kernels/attention/dilated_segments.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/layers/mixer.hpp"

// Which keys a query of attention sees.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which keys a query sees. A causal layer: all before it; or the last `window` of those whose
/// distance to it divides by `dilation`, and with them the first tokens of the stream; or those of
/// its own chunk and of the chunks_back chunks before. A bidirectional one: all; or those less than
/// `window` from it; or those of the chunks from chunks_back before to chunks_ahead behind its own
/// (with `all_chunks_back` from the first one on: block-causal); or all before it and the first
/// `prefix` (prefix-LM).
///
/// Where chunks are shifted (`chunk_shift`, half of a chunk), half of the heads hand over what the
/// other half cuts apart: Chen et al. 2023, arXiv:2309.12307 (LongLoRA's S²-Attn); with first
/// tokens, `n_sinks` that are `sinks_in_place`, Zhang 2024, arXiv:2406.05678 (SinkLoRA's SF-Attn).
///
/// With `windows` heads have windows of their own: of so many sizes each is that of an equal share
/// of the heads, in order (one a head, or one a key head). Fu et al. 2024, arXiv:2406.14909 (MoA,
/// whose sizes follow the length that a layer is made for; its first tokens are `sinks_in_place`).
///
/// With `key_mask` a bidirectional layer takes marks beside x, and shows no key whose token has
/// none: padding, wherever it lies. Outputs of padding are computed like others, and one that sees
/// no key is of zeros. The `attention_mask` of HF transformers.
///
/// With `segments` there are branches, whose softmaxes are merged: branch i shows a query the keys
/// of its own segment of segments[i] tokens, of which it takes every segment_dilations[i]-th.
/// Which ones, the run of heads decides: `DilatedSegments`. Ding et al. 2023, arXiv:2307.02486
/// (LongNet); microsoft/torchscale, torchscale/component/dilated_attention.py. Where segments are
/// not whole, its bidirectional form sees zeros in place of what is missing; here nothing is seen.
struct SeesConfig {
  Index window = 0;                 // keys that a query sees, its own among them; 0: all
  std::vector<Index> windows = {};  // of shares of the heads, in place of `window`
  Index dilation = 1;               // positions from one seen key to the next
  Index n_sinks = 0;                // first tokens of the stream that every query sees besides
  bool sinks_in_place = false;      // where they stand, not right before the window
  Index chunk = 0;                  // tokens of a chunk; 0: there are none
  Index chunks_back = 0, chunks_ahead = 0;
  Index chunk_shift = 0;  // tokens that the first chunk of the heads' second half is shorter
  bool all_chunks_back = false;
  Index prefix = 0;  // first tokens that all see, the others causal; 0: all see all
  std::vector<Index> segments = {}, segment_dilations = {};  // of branches
  bool key_mask = false;

  static void visit(auto& self, auto&& field) {
    const auto windowed = only_where(self.windowed(), "window or windows is positive");
    const auto chunked = only_where(self.chunk > 0, "chunk is positive");
    field("window", self.window, zero_is_legal), field("windows", self.windows);
    field("dilation", self.dilation, windowed);
    field("n_sinks", self.n_sinks, zero_is_legal,
          only_where(self.windowed() || self.chunk > 0, "window, windows or chunk is positive"));
    field("sinks_in_place", self.sinks_in_place,
          only_where(self.n_sinks > 0, "n_sinks is positive"));
    field("chunk", self.chunk, zero_is_legal);
    field("chunks_back", self.chunks_back, zero_is_legal, chunked);
    field("chunks_ahead", self.chunks_ahead, zero_is_legal, chunked);
    field("chunk_shift", self.chunk_shift, zero_is_legal, chunked);
    field("all_chunks_back", self.all_chunks_back, chunked);
    field("prefix", self.prefix, zero_is_legal);
    field("segments", self.segments), field("segment_dilations", self.segment_dilations);
    field("key_mask", self.key_mask);
  }
  void check() const {
    require(n_sinks == 0 || dilation == 1, "n_sinks needs a dilation of 1");
    require((window > 0) + !windows.empty() + (chunk > 0) + (prefix > 0) + !segments.empty() <= 1,
            "window, windows, chunk, prefix and segments exclude each other");
    require(segments.size() == segment_dilations.size(),
            "segments needs as many segment_dilations");
    for (std::size_t i = 0; i < segments.size(); ++i) {
      require(segments[i] % segment_dilations[i] == 0,
              "segments must be multiples of their segment_dilations");
    }
    require(n_sinks == 0 || (windows.empty() && chunk == 0) || sinks_in_place,
            "n_sinks needs sinks_in_place beside windows or chunk");
    require(chunk_shift == 0 || chunk_shift < chunk, "chunk_shift needs a larger chunk");
    require(!key_mask || segments.empty(), "key_mask needs segments to be empty");
    require(!all_chunks_back || chunks_back == 0, "all_chunks_back needs chunks_back to be 0");
  }
  bool windowed() const { return window > 0 || !windows.empty(); }
  /// Whether what a causal query sees has a bound.
  bool is_bounded() const { return windowed() || chunk > 0 || !segments.empty(); }
  /// Positions from a query back to the last key that it may see, its own among them.
  Index reach() const {
    if (!segments.empty()) return std::ranges::max(segments);
    if (chunk > 0) return (chunks_back + 1) * chunk;
    return (windows.empty() ? window - 1 : std::ranges::max(windows) - 1) * dilation + 1;
  }
  /// What the rows of a ring are a multiple of, or a number above `largest_size`.
  Index ring_step() const {
    Index step = dilation;
    for (const Index each : segment_dilations) {
      if (step <= largest_size) step = std::lcm(step, each);
    }
    return step;
  }
  DilatedSegments branches() const { return {segments, segment_dilations}; }
  /// Of n_heads heads, the keys from `first` on; in a bidirectional layer on both sides.
  Windows window_mask(Index n_heads, bool causal, Index first = 0) const {
    const std::span<const Index> one(&window, 1);
    return {windows.empty() ? one : std::span(windows), n_heads, first, !causal};
  }
  Chunks chunk_mask(Index n_heads, bool causal, Index first = 0) const {
    const Index back = all_chunks_back ? Band::unlimited : chunks_back;
    return {chunk, back, chunks_ahead, causal, chunk_shift, n_heads / 2, first};
  }
};

/// The marks that a bidirectional layer asks for beside x.
struct KeyMarks {
  View<const Index, 2> key_mask;  // [T, 1], 0: no query sees this token

  static void visit(auto& self, const auto& c, auto&& side) {
    if (c.sees.key_mask) side("key_mask", self.key_mask, 1, SideRole::input, 2);
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
