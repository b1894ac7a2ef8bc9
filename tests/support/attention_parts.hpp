#pragma once

#include <string>
#include <vector>

#include "seqmix/io/json.hpp"

namespace support {

/// What a slot of attention may hold: a part of a config of `layer`, "attention" or
/// "bidirectional_attention".
struct AttentionMember {
  std::string slot, name;
  seqmix::Json config;
  bool causal = true, bidirectional = true;  // the layers that have it
};

const std::vector<AttentionMember>& attention_members();

/// Whether `layer` has all of these members and each is of a slot of its own.
bool fit(const std::string& layer, const std::vector<const AttentionMember*>& members);

/// A small layer with these members.
seqmix::Json attention_config(const std::vector<const AttentionMember*>& members);

}  // namespace support
