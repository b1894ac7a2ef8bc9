#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/io/json.hpp"

// What the fuzz targets share. Each gives the library bytes as a file and asks that it either takes
// them or throws a `seqmix::Error`; any other exception, `std::bad_alloc` too, ends the program and
// is a finding. `TARGET --seeds=FOLDER` writes valid files to begin with.

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace fuzz {

using Bytes = std::span<const std::uint8_t>;

/// Mutates what stands in the bytes at `data`: `size` of them, room for `limit`.
class Mutation {
 public:
  Mutation(std::uint8_t* data, std::size_t size, std::size_t limit, unsigned seed)
      : random_(seed), limit_(limit), text_(reinterpret_cast<const char*>(data), size) {}

  /// A safetensors file from `first` on: its header, its numbers or anything, and the length of the
  /// header follows what the header has become.
  void safetensors(std::size_t first) {
    constexpr std::size_t prefix = sizeof(std::uint64_t);
    std::uint64_t length = 0;
    const bool framed = text_.size() >= first + prefix;
    if (framed) std::memcpy(&length, text_.data() + first, prefix);
    const std::size_t begin = first + prefix;
    if (!framed || length > text_.size() - begin || one_of(32) == 0) return anything(0);
    const std::size_t data = begin + static_cast<std::size_t>(length);
    if (one_of(16) == 0) return anything(data);
    if (one_of(2) == 0) return word(data);
    const std::size_t rest = text_.size() - static_cast<std::size_t>(length);
    json(begin, static_cast<std::size_t>(length));
    length = text_.size() - rest;
    std::memcpy(text_.data() + first, &length, prefix);
  }
  /// Numbers from `first` on: eight bytes of them become an integer that is at an edge.
  void word(std::size_t first) {
    constexpr std::int64_t edges[] = {0,
                                      1,
                                      4,
                                      64,
                                      -1,
                                      std::int64_t{1} << 31,
                                      std::int64_t{1} << 53,
                                      INT64_C(1) << 62,
                                      INT64_MAX,
                                      INT64_MAX - 1,
                                      INT64_MIN,
                                      INT64_MIN + 1,
                                      0x7f8000007f800000,
                                      0x7ff0000000000000,
                                      0x7c007bff7f80ff80};
    const std::size_t words = (text_.size() - first) / sizeof(std::int64_t);
    if (words == 0) return anything(0);
    const std::int64_t edge = edges[one_of(std::size(edges))];
    std::memcpy(text_.data() + first + one_of(words) * sizeof(edge), &edge, sizeof(edge));
  }
  /// JSON text: one of its numbers becomes one that is at an edge, or any change.
  void json(std::size_t first, std::size_t size) {
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    std::vector<std::size_t> numbers;
    for (std::size_t i = first; i < first + size; ++i) {
      if (is_digit(text_[i]) && (i == first || !is_digit(text_[i - 1]))) numbers.push_back(i);
    }
    if (numbers.empty() || one_of(8) == 0) {
      const std::string tail = text_.substr(first + size);
      text_.resize(first + size);
      anything(first);
      text_ += tail;
      return;
    }
    constexpr std::string_view edges[] = {"0",
                                          "1",
                                          "2",
                                          "3",
                                          "64",
                                          "65",
                                          "-1",
                                          "1.5",
                                          "127",
                                          "300000000",
                                          "2147483647",
                                          "2147483648",
                                          "4294967296",
                                          "9007199254740992",
                                          "4611686018427387904",
                                          "9223372036854775806",
                                          "9223372036854775807",
                                          "9223372036854775808",
                                          "18446744073709551615",
                                          "-9223372036854775808",
                                          "1e-45",
                                          "1e-320",
                                          "3.5e38",
                                          "1e308",
                                          "-1e308",
                                          "1e400",
                                          "\"Infinity\"",
                                          "true",
                                          "null"};
    const std::size_t at = numbers[one_of(numbers.size())];
    std::size_t end = at;
    while (end < first + size && is_digit(text_[end])) ++end;
    text_.replace(at, end - at, edges[one_of(std::size(edges))]);
  }
  /// The bytes from `first` on, by the fuzzer's own means.
  void anything(std::size_t first) {
    const std::size_t size = text_.size();
    if (first >= std::max(size, limit_)) return;
    text_.resize(std::max(size, limit_));
    auto* const bytes = reinterpret_cast<std::uint8_t*>(text_.data());
    text_.resize(first + LLVMFuzzerMutate(bytes + first, size - first, text_.size() - first));
  }

  std::size_t write(std::uint8_t* data) const {
    const std::size_t size = std::min(text_.size(), limit_);
    std::memcpy(data, text_.data(), size);
    return size;
  }
  const std::string& text() const { return text_; }
  std::size_t one_of(std::size_t count) { return random_() % count; }

 private:
  std::minstd_rand random_;
  std::size_t limit_;
  std::string text_;
};

/// What `LLVMFuzzerCustomMutator` does to an input that is a safetensors file from `first` on.
inline std::size_t mutate_safetensors(std::uint8_t* data, std::size_t size, std::size_t limit,
                                      unsigned seed, std::size_t first) {
  Mutation mutation(data, size, limit, seed);
  mutation.safetensors(first);
  return mutation.write(data);
}

inline void write_file(const std::filesystem::path& path, Bytes bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}
inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

/// A folder of this process, made anew.
inline std::filesystem::path scratch_folder() {
  std::random_device random;
  const auto path =
      std::filesystem::temp_directory_path() / ("seqmix-fuzz-" + std::to_string(random()));
  std::filesystem::create_directories(path);
  return path;
}

/// Whether all sizes of a config are small, so that what it describes is cheap to run.
inline bool is_small(const seqmix::Json& config) {
  return std::ranges::all_of(config, [](const seqmix::Json& value) {
    return value.is_structured()
               ? is_small(value)
               : !value.is_number_integer() || std::abs(value.get<double>()) <= 64;
  });
}

/// Where `TARGET --seeds=FOLDER` asks for seeds, which are then all that it does.
inline void write_seeds(int argc, char** argv,
                        const std::function<void(const std::filesystem::path& folder)>& write) {
  constexpr std::string_view option = "--seeds=";
  if (argc < 2 || !std::string_view(argv[1]).starts_with(option)) return;
  const std::filesystem::path folder(std::string_view(argv[1]).substr(option.size()));
  std::filesystem::create_directories(folder);
  write(folder);
  std::exit(0);
}

}  // namespace fuzz
