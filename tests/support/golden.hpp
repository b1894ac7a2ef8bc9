#pragma once

#include <string>
#include <vector>

#include "seqmix/io/registry.hpp"

namespace support {

/// How far each verb of a layer, in double, is from the outputs that a layer file holds: relative
/// errors, side values included. Steps and prefill pieces end in the published final state where
/// the file has one.
struct GoldenErrors {
  std::string layer;
  bool continues = true;  // else `forward` is the layer's only verb
  double forward = 0, prefill = 0, step = 0;
  double state = 0;  // the largest over members and both verbs; 0 where the file has none
  double tolerance = 0;

  bool ok() const {
    return forward <= tolerance && prefill <= tolerance && step <= tolerance && state <= tolerance;
  }
};

/// The relative error that a layer may have: 1e-12 where the file is float64 (1e-10 for indirect
/// layers), 2e-6 where the published code forces float32. A file chooses nothing else.
double golden_tolerance(const std::string& layer, const std::string& precision);

/// Throws a `seqmix::Error` where the file is not a layer file.
GoldenErrors check_golden(const seqmix::Safetensors& file);

}  // namespace support
