#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "seqmix/io/json.hpp"

namespace support {

/// A published system that the library stands for.
struct System {
  std::string name;
  std::string paper;          // author, year, arXiv id
  std::string made_of;        // a layer of the registry, or models/<architecture>
  seqmix::Json config;        // the fields that make it this system; sizes are not among them
  std::string evidence_kind;  // golden, test or program
  std::string evidence;       // a golden file, a test case or a program
};

/// The systems of a table like tests/systems.tsv: a line each, columns apart by tabs, the first
/// line names them. Throws `seqmix::ConfigError` with the line that is wrong.
std::vector<System> parse_systems(std::string_view text);

/// Those of tests/systems.tsv.
std::vector<System> systems();

}  // namespace support
