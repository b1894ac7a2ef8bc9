#pragma once

#include <string_view>

#include "seqmix/core/platform.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How near a layer's forms and the published code are in double: 1e-12, or 1e-10 where a long
/// Fourier transform or a triangular inverse stands between x and y.
enum class Tolerance { exact, indirect };

/// The facts of a layer, each said once, in its definition. The catalogue, the registry and the
/// tests read them; the machine reads the switches, and refuses to compile a definition that has a
/// hook without its switch or a switch without its hook.
struct Traits {
  std::string_view name;          // in files and the registry
  std::string_view title = {};    // what the catalogue calls it
  std::string_view paper = {};    // author, year, arXiv id
  std::string_view forward = {};  // cost of T tokens
  std::string_view step = {};     // cost of one token
  std::string_view state = {};    // numbers that a stream remembers
  Tolerance tolerance = Tolerance::exact;
  /// Whether it is faster not to cut segments in time (an FFT): preference, not meaning.
  bool whole_sequence = false;
  /// Whether it is made of others, which cut time and count positions themselves.
  bool composite = false;
  bool has_position_limit = false;  // position_limit(): the most tokens of a stream
  bool has_start_row = false;       // start_row(state, row): what does not start at zero
  bool has_source = false;          // read(source, state, call), d_source in the config
  bool has_block_tokens = false;    // block_tokens(): the tokens of a block of time
  /// The file that says all this.
  const char* file = __builtin_FILE();

  /// The path below seqmix/, or nothing for a layer from elsewhere.
  constexpr std::string_view header() const {
    constexpr std::string_view folder = "include/seqmix/";
    const std::string_view path = file;
    const auto at = path.rfind(folder);
    return at == path.npos ? std::string_view() : path.substr(at + folder.size());
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
