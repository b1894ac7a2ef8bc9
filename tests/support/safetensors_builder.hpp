#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace seqmix::test {

using Bytes = std::vector<std::byte>;

/// A safetensors file of any header, right or wrong: its length in `length`, else as it is.
inline Bytes safetensors_file(std::string_view header, const Bytes& data,
                              std::uint64_t length = ~std::uint64_t{0}) {
  if (length == ~std::uint64_t{0}) length = header.size();
  Bytes file;
  for (const auto part : {std::as_bytes(std::span(&length, 1)), std::as_bytes(std::span(header)),
                          std::span<const std::byte>(data)}) {
    file.insert(file.end(), part.begin(), part.end());
  }
  return file;
}
inline Bytes safetensors_file(std::string_view header, std::size_t data_size) {
  return safetensors_file(header, Bytes(data_size));
}

/// Builds well-formed files tensor by tensor, by no code of the library.
class SafetensorsBuilder {
 public:
  SafetensorsBuilder& add(std::string_view name, std::string_view dtype, std::string_view shape,
                          std::span<const std::byte> bytes) {
    const std::size_t begin = data_.size();
    data_.insert(data_.end(), bytes.begin(), bytes.end());
    return add_text("\"" + std::string(name) + "\":{\"dtype\":\"" + std::string(dtype) +
                    "\",\"shape\":" + std::string(shape) + ",\"data_offsets\":[" +
                    std::to_string(begin) + "," + std::to_string(data_.size()) + "]}");
  }
  template <class T>
  SafetensorsBuilder& add(std::string_view name, std::string_view dtype, std::string_view shape,
                          const std::vector<T>& numbers) {
    return add(name, dtype, shape, std::as_bytes(std::span(numbers)));
  }
  /// A member of the header, as JSON.
  SafetensorsBuilder& add_text(std::string_view member) {
    members_.append(members_.empty() ? "" : ",").append(member);
    return *this;
  }
  /// `remainder`: where the data starts, modulo 64; spaces after the header see to it.
  Bytes build(std::size_t remainder = 0) const {
    std::string header = "{" + members_ + "}";
    while ((sizeof(std::uint64_t) + header.size()) % 64 != remainder) header += ' ';
    return safetensors_file(header, data_);
  }

 private:
  std::string members_;
  Bytes data_;
};

/// A new folder that goes away with this object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::random_device random;
    do {
      path_ = std::filesystem::temp_directory_path() / ("seqmix-test-" + std::to_string(random()));
    } while (!std::filesystem::create_directory(path_));
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path write(const std::filesystem::path& name, std::string_view text) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary)
        .write(text.data(), static_cast<std::streamsize>(text.size()));
    return path_ / name;
  }
  std::filesystem::path write(const std::filesystem::path& name, const Bytes& bytes) const {
    return write(name, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }

 private:
  std::filesystem::path path_;
};

}  // namespace seqmix::test
