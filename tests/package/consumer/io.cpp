#include <seqmix/io/safetensors.hpp>

bool reads_files();

bool reads_files() {
  try {
    seqmix::Safetensors::open("no such file");
  } catch (const seqmix::CheckpointError&) {
    return true;
  }
  return false;
}
