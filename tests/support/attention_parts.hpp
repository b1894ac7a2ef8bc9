#pragma once

#include <string>
#include <vector>

#include "seqmix/io/json.hpp"

namespace support {

/// The layers that are made of members of slots.
inline const std::vector<std::string> layers_of_parts{"attention",
                                                      "bidirectional_attention",
                                                      "block_sparse_attention",
                                                      "bidirectional_block_sparse_attention",
                                                      "cross_attention",
                                                      "multi_head_latent_attention"};

/// What a slot of attention may hold: a part of a config.
struct AttentionMember {
  std::string slot, name;
  seqmix::Json config;
  bool causal = true, bidirectional = true;

  bool is_of(const std::string& layer) const;
};

const std::vector<AttentionMember>& attention_members();

/// Whether `layer` has all of these members and each is of a slot of its own.
bool fit(const std::string& layer, const std::vector<const AttentionMember*>& members);

/// A small `layer` with these members.
seqmix::Json attention_config(const std::string& layer,
                              const std::vector<const AttentionMember*>& members);

}  // namespace support
