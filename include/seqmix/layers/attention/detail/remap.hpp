#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "seqmix/core/field.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/numeric.hpp"
#include "seqmix/kernels/attention/key_bands.hpp"
#include "seqmix/layers/attention/detail/sees.hpp"

// Rotary positions that depend on the pair of query and key: bands of keys, in each of which both
// follow rules of their own.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// At which distance rotations see a key at j, from a query at i. No distance is longer then than
/// those that were trained on, and the model need not be trained again.
///
///   self_extend  i - j within `window`; beyond it floors of groups count, ⌊i / group⌋ + window -
///                ⌊window / group⌋ - ⌊j / group⌋
///   dual_chunk   within chunks of c = chunk - local tokens i - j; of the chunk before, min(i mod c
///                + c, chunk) - j mod c, which is i - j where i mod c <= local; of earlier chunks
///                min(2c - 1, chunk) - j mod c
///   rpe_3d       the same, and all pairs of keys of earlier chunks are turned by one angle more,
///                rope_theta^-m of their chunk m against that of the chunk before the query's
///   lm_infinite  i - j within sees.window; the first sees.n_sinks tokens, which stay visible, are
///                at distance sees.window beyond it
///
/// Source: Jin et al. 2024, arXiv:2401.01325, datamllab/LongLM; An et al. 2024, arXiv:2402.17463,
/// HKUNLP/ChunkLlama; Ma et al. 2024, arXiv:2406.09897, maxindian/3D-RPE-Long-Contex-Modeling,
/// whose keys are turned again with each chunk that follows, while here a key is turned once; Han
/// et al. 2023, arXiv:2308.16137, Glaciohound/LM-Infinite.
enum class Remap { none, self_extend, dual_chunk, rpe_3d, lm_infinite };
constexpr std::array<std::string_view, 5> names_of(Remap) {
  return {"none", "self_extend", "dual_chunk", "rpe_3d", "lm_infinite"};
}

struct RemapConfig {
  Remap kind = Remap::none;
  Index window = 0;  // self_extend: nearest keys, the query's own among them
  Index group = 1;   // self_extend: tokens of one position beyond them
  Index chunk = 0;   // dual_chunk and rpe_3d: the longest distance
  Index local = 0;   // dual_chunk and rpe_3d: what a chunk is shorter

  static void visit(auto& self, auto&& field) {
    const auto of_groups = only_where(self.kind == Remap::self_extend, "remap is self_extend");
    const auto of_chunks = only_where(self.chunked(), "remap is dual_chunk or rpe_3d");
    field("remap", self.kind);
    field("remap_window", self.window, zero_is_legal, of_groups);
    field("remap_group", self.group, of_groups);
    field("remap_chunk", self.chunk, zero_is_legal, of_chunks);
    field("remap_local", self.local, zero_is_legal, of_chunks);
  }
  void check() const {
    require(kind != Remap::self_extend || window > 0,
            "remap self_extend needs a positive remap_window");
    require(!chunked() || local < chunk,
            "remap dual_chunk and rpe_3d need a remap_chunk above remap_local");
  }
  bool chunked() const { return kind == Remap::dual_chunk || kind == Remap::rpe_3d; }
  /// Tokens of a chunk.
  Index chunk_tokens() const { return chunk - local; }
};

/// The bands of one softmax; none where one rule is for all keys. A window without a remap has them
/// for its first `n_sinks` tokens.
inline std::vector<KeyBand> bands_of(const RemapConfig& c, const SeesConfig& sees, Index n_heads) {
  if (c.kind == Remap::self_extend) return self_extend_bands(c.window, c.group);
  if (c.chunked()) return dual_chunk_bands(c.chunk, c.chunk_tokens());
  const Index n = sees.n_sinks;
  if (c.kind == Remap::lm_infinite) return lm_infinite_bands(sees.window, n);
  if (n == 0) return {};
  if (!sees.sinks_in_place) return sink_bands(sees.window, n);
  if (sees.chunk > 0) return sink_bands_in_place(sees.chunk_mask(n_heads, true, n), n);
  return sink_bands_in_place(Band::window(sees.reach(), n), n);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
