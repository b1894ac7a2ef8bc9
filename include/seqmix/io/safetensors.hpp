#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <concepts>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#define SEQMIX_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define SEQMIX_HAS_MMAP 0
#endif

#include "seqmix/core/parameter.hpp"
#include "seqmix/io/json.hpp"

// The format: 8 bytes, the length of the header; the header, a JSON object
// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//  "__metadata__": {"key": "text"}}, spaces may follow it; then the data, row-major.
// Source: huggingface/safetensors, README.md and safetensors/src/tensor.rs.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

static_assert(std::endian::native == std::endian::little, "safetensors numbers are little-endian");

/// How the numbers of a tensor are stored in a file.
enum class DType {
  // clang-format off
  boolean, u8, i8, f8_e5m2, f8_e4m3, f8_e8m0, u16, i16, f16, bf16, u32, i32, f32, u64, i64, f64, c64
  // clang-format on
};

namespace detail {

struct DTypeFacts {
  DType dtype;
  std::string_view name;
  Index bytes;
};
inline constexpr std::array<DTypeFacts, 17> dtype_table{{
    {DType::boolean, "BOOL", 1},
    {DType::u8, "U8", 1},
    {DType::i8, "I8", 1},
    {DType::f8_e5m2, "F8_E5M2", 1},
    {DType::f8_e4m3, "F8_E4M3", 1},
    {DType::f8_e8m0, "F8_E8M0", 1},
    {DType::u16, "U16", 2},
    {DType::i16, "I16", 2},
    {DType::f16, "F16", 2},
    {DType::bf16, "BF16", 2},
    {DType::u32, "U32", 4},
    {DType::i32, "I32", 4},
    {DType::f32, "F32", 4},
    {DType::u64, "U64", 8},
    {DType::i64, "I64", 8},
    {DType::f64, "F64", 8},
    {DType::c64, "C64", 8},
}};
constexpr bool dtype_table_in_order() {
  for (std::size_t i = 0; i < dtype_table.size(); ++i) {
    if (static_cast<std::size_t>(dtype_table[i].dtype) != i) return false;
  }
  return true;
}
static_assert(dtype_table_in_order());

constexpr const DTypeFacts& facts(DType dtype) {
  return dtype_table[static_cast<std::size_t>(dtype)];
}

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::same_as<T, double>) {
    return DType::f64;
  } else if constexpr (std::same_as<T, float>) {
    return DType::f32;
  } else if constexpr (std::same_as<T, float16>) {
    return DType::f16;
  } else if constexpr (std::same_as<T, bfloat16>) {
    return DType::bf16;
  } else {
    static_assert(std::integral<T> && !std::same_as<T, bool>, "a type that no file holds");
    constexpr std::size_t width = std::bit_width(sizeof(T)) - 1;
    constexpr std::array signed_types{DType::i8, DType::i16, DType::i32, DType::i64};
    constexpr std::array unsigned_types{DType::u8, DType::u16, DType::u32, DType::u64};
    return std::is_signed_v<T> ? signed_types[width] : unsigned_types[width];
  }
}

inline std::string shape_text(std::span<const Index> shape) {
  std::string result = "[";
  for (const Index extent : shape) {
    if (result.size() > 100) return result + ", ...]";
    if (result.size() > 1) result += ", ";
    result += std::to_string(extent);
  }
  return result + "]";
}

}  // namespace detail

inline std::string_view to_string(DType dtype) { return detail::facts(dtype).name; }
/// The bytes of one number.
constexpr Index size_of(DType dtype) { return detail::facts(dtype).bytes; }

/// A tensor as it lies in a file: row-major, little-endian, at any address.
struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<Index> shape;  // empty: one number
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  // keeps `bytes` alive
  std::string file;                   // where it comes from, for errors

  [[noreturn]] void fail(std::string_view rule, std::string_view got,
                         std::string_view expected) const {
    throw CheckpointError(file + ": tensor " + detail::in_quotes(name) + ": " + std::string(rule) +
                          "; got " + std::string(got) + ", expected " + std::string(expected));
  }

  /// Throws where the bytes are not as many as dtype and shape say.
  void check_size() const {
    Index expected = size_of(dtype);
    try {
      for (const Index extent : shape) expected = checked_product(expected, extent);
    } catch (const ShapeError&) {
      fail("shape overflows", detail::shape_text(shape), "a size of at most 63 bits");
    }
    if (expected != static_cast<Index>(bytes.size())) {
      fail("size does not fit the shape", std::to_string(bytes.size()) + " bytes",
           std::to_string(expected) + " for " + std::string(to_string(dtype)) + " " +
               detail::shape_text(shape));
    }
  }

  /// The numbers as S; a tensor without axes is read as [1]. Floating point reads F64, F32, F16 and
  /// BF16 (only F64 to float rounds; what overflows is refused), integers read integers that fit.
  /// The bytes are borrowed where they are an S already and lie at an address fit for it.
  template <class S, Index Rank>
  requires(std::floating_point<S> ||
           std::integral<S>) Parameter<S, Rank> parameter(Shape<Rank> expected)
  const {
    const bool scalar = shape.empty() && Rank == 1 && expected[0] == 1;
    if (!scalar && !std::ranges::equal(shape, expected.extents)) {
      fail("wrong shape", detail::shape_text(shape), expected.text());
    }
    const bool aligned = reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(S) == 0;
    if (dtype == detail::dtype_of<S>() && aligned && owner != nullptr) {
      return {View<const S, Rank>(reinterpret_cast<const S*>(bytes.data()), expected), owner};
    }
    Tensor<S, Rank> numbers(expected);
    read_into(std::span<S>(numbers.data(), static_cast<std::size_t>(numbers.size())));
    return numbers;
  }

  /// The numbers of an integer tensor of any shape, row-major.
  Tensor<std::int64_t, 1> integers() const {
    Tensor<std::int64_t, 1> numbers(Shape<1>{static_cast<Index>(bytes.size()) / size_of(dtype)});
    read_into(std::span<std::int64_t>(numbers.data(), static_cast<std::size_t>(numbers.size())));
    return numbers;
  }

 private:
  template <class S>
  void read_into(std::span<S> to) const {
    if constexpr (std::integral<S>) {
      switch (dtype) {
        case DType::boolean:
        case DType::u8:
          return convert<std::uint8_t>(to);
        case DType::i8:
          return convert<std::int8_t>(to);
        case DType::u16:
          return convert<std::uint16_t>(to);
        case DType::i16:
          return convert<std::int16_t>(to);
        case DType::u32:
          return convert<std::uint32_t>(to);
        case DType::i32:
          return convert<std::int32_t>(to);
        case DType::u64:
          return convert<std::uint64_t>(to);
        case DType::i64:
          return convert<std::int64_t>(to);
        default:
          fail("wrong dtype", to_string(dtype), "integers");
      }
    } else {
      switch (dtype) {
        case DType::f16:
          return convert<float16>(to);
        case DType::bf16:
          return convert<bfloat16>(to);
        case DType::f32:
          return convert<float>(to);
        case DType::f64:
          return convert<double>(to);
        default:
          fail("wrong dtype", to_string(dtype), "F64, F32, F16 or BF16");
      }
    }
  }

  template <class T, class S>
  void convert(std::span<S> to) const {
    if constexpr (std::same_as<T, S>) {
      if (!to.empty()) std::memcpy(to.data(), bytes.data(), bytes.size());
    } else {
      for (std::size_t i = 0; i < to.size(); ++i) {
        T value;
        std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
        if constexpr (std::integral<T>) {
          if (!std::in_range<S>(value)) {
            fail("number " + std::to_string(i) + " does not fit", std::to_string(value),
                 "a number of " + std::to_string(sizeof(S)) + " bytes");
          }
          to[i] = static_cast<S>(value);
        } else if constexpr (std::same_as<T, double>) {
          to[i] = static_cast<S>(value);
          if (std::isfinite(value) && !std::isfinite(to[i])) {
            fail("number " + std::to_string(i) + " does not fit", detail::excerpt(value),
                 "at most " + detail::excerpt(std::numeric_limits<S>::max()));
          }
        } else {
          to[i] = static_cast<S>(static_cast<float>(value));
        }
      }
    }
  }
};

/// The tensors of a file or of several, by name.
class StoredTensors {
 public:
  /// What they come from, as errors call it.
  const std::string& source() const { return source_; }
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  /// Valid as long as this object.
  const StoredTensor& entry(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      throw CheckpointError(source_ + ": tensor " + detail::in_quotes(name) + " is missing");
    }
    return found->second;
  }
  template <class S, Index Rank>
  Parameter<S, Rank> parameter(std::string_view name, Shape<Rank> expected) const {
    return entry(name).template parameter<S, Rank>(expected);
  }
  /// The shape is that of the entry.
  Tensor<std::int64_t, 1> integers(std::string_view name) const { return entry(name).integers(); }

  /// Throws where a tensor whose name starts with `prefix` is none of `known`: a checkpoint that
  /// holds more than was asked for is of another model.
  void expect_no_others(const std::set<std::string, std::less<>>& known,
                        std::string_view prefix = {}) const {
    for (auto at = tensors_.lower_bound(prefix);
         at != tensors_.end() && at->first.starts_with(prefix); ++at) {
      if (!known.contains(at->first)) {
        throw CheckpointError(source_ + ": unexpected tensor " + detail::in_quotes(at->first) +
                              " " + detail::shape_text(at->second.shape));
      }
    }
  }

 protected:
  explicit StoredTensors(std::string source) : source_(std::move(source)) {}
  using Map = std::map<std::string, StoredTensor, std::less<>>;

  std::string source_;
  Map tensors_;
};

/// Tensors that lie in memory, each under its name.
class MemoryTensors : public StoredTensors {
 public:
  explicit MemoryTensors(std::vector<StoredTensor> tensors, std::string source = "memory")
      : StoredTensors(std::move(source)) {
    for (StoredTensor& tensor : tensors) {
      tensor.file = source_;
      tensor.check_size();
      std::string name = tensor.name;
      if (!tensors_.emplace(name, std::move(tensor)).second) {
        throw CheckpointError(source_ + ": two tensors are called " + detail::in_quotes(name));
      }
    }
  }
};

/// How a file comes into memory. A mapped file must keep its length and bytes while it is in use.
enum class FileAccess { mapped, copied };

/// One safetensors file, checked as a whole when it is opened.
///
/// Every `CheckpointError` names the file, the tensor, what was got and what was expected.
class Safetensors : public StoredTensors {
 public:
  /// Parameters that borrow the file's bytes keep them alive. Where files cannot be mapped they are
  /// copied.
  static Safetensors open(const std::filesystem::path& path,
                          FileAccess access = FileAccess::mapped) {
#if SEQMIX_HAS_MMAP
    if (access == FileAccess::mapped) {
      const auto mapping = std::make_shared<const Mapping>(path);
      return Safetensors(path.string(), mapping->bytes(), mapping);
    }
#endif
    return parse(detail::read_file<std::vector<std::byte>>(
                     path, static_cast<std::uintmax_t>(std::numeric_limits<Index>::max())),
                 path.string());
  }
  static Safetensors parse(std::vector<std::byte> bytes, std::string name) {
    const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    return Safetensors(std::move(name), std::span<const std::byte>(*owner), owner);
  }

  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  friend class Checkpoint;

#if SEQMIX_HAS_MMAP
  class Mapping {
   public:
    explicit Mapping(const std::filesystem::path& path) {
      const auto fail = [&](std::string_view why) {
        throw CheckpointError(path.string() + ": " + std::string(why));
      };
      // A pipe would block here without O_NONBLOCK, before its kind is known.
      const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
      if (file < 0) fail("cannot be opened: " + std::generic_category().message(errno));
      struct stat status {};
      const bool regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
      if (regular && status.st_size > 0) {
        size_ = static_cast<std::size_t>(status.st_size);
        data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      }
      const int error = errno;
      ::close(file);
      if (!regular) fail("not a regular file");
      if (data_ == MAP_FAILED) fail("cannot be mapped: " + std::generic_category().message(error));
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() {
      if (data_ != nullptr) ::munmap(data_, size_);
    }
    std::span<const std::byte> bytes() const {
      return {static_cast<const std::byte*>(data_), size_};
    }

   private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
  };
#endif

  Safetensors(std::string name, std::span<const std::byte> file,
              const std::shared_ptr<const void>& owner)
      : StoredTensors(std::move(name)) {
    constexpr std::size_t prefix = sizeof(std::uint64_t);
    if (file.size() < prefix) {
      fail("truncated before the header's length", std::to_string(file.size()) + " bytes",
           "at least 8");
    }
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), prefix);
    if (length > json_size_limit) {
      fail("header too long", std::to_string(length) + " bytes",
           "at most " + std::to_string(json_size_limit));
    }
    if (length > file.size() - prefix) {
      fail("header longer than the file", std::to_string(length) + " bytes",
           "at most " + std::to_string(file.size() - prefix));
    }
    const std::string_view header(reinterpret_cast<const char*>(file.data()) + prefix,
                                  static_cast<std::size_t>(length));
    if (!header.starts_with('{')) {
      fail("header does not start with '{'", detail::in_quotes(header.substr(0, 1)), "\"{\"");
    }
    const auto data = file.subspan(prefix + header.size());
    const Json description = detail::parse_standard_json(header, source_);
    for (const auto& [key, value] : description.items()) {
      if (key == "__metadata__") {
        read_metadata(value);
      } else {
        read_entry(key, value, data).owner = owner;
      }
    }
    check_layout(data);
  }

  [[noreturn]] void fail(std::string_view rule, std::string_view got,
                         std::string_view expected) const {
    throw CheckpointError(source_ + ": " + std::string(rule) + "; got " + std::string(got) +
                          ", expected " + std::string(expected));
  }

  void read_metadata(const Json& value) {
    if (!value.is_object()) fail("__metadata__ is no object", detail::excerpt(value), "an object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) {
        fail("__metadata__ " + detail::in_quotes(key) + " is no string", detail::excerpt(text),
             "a string");
      }
      metadata_.emplace(key, text.get_ref<const std::string&>());
    }
  }

  StoredTensor& read_entry(const std::string& name, const Json& value,
                           std::span<const std::byte> data) {
    StoredTensor& tensor = tensors_[name];
    tensor.name = name;
    tensor.file = source_;
    constexpr std::array<std::string_view, 3> keys{"dtype", "shape", "data_offsets"};
    if (!value.is_object()) tensor.fail("description", detail::excerpt(value), "an object");
    for (const auto& [key, ignored] : value.items()) {
      if (std::ranges::find(keys, key) == keys.end()) {
        tensor.fail("unknown key", detail::in_quotes(key), "dtype, shape and data_offsets");
      }
    }
    for (const std::string_view key : keys) {
      if (!value.contains(key)) {
        tensor.fail("description", "no " + std::string(key), "dtype, shape and data_offsets");
      }
    }
    const Json& dtype = value["dtype"];
    const auto known = std::ranges::find_if(
        detail::dtype_table, [&](const detail::DTypeFacts& facts) { return dtype == facts.name; });
    if (known == detail::dtype_table.end()) {
      tensor.fail("unknown dtype", detail::excerpt(dtype), "a dtype of safetensors");
    }
    tensor.dtype = known->dtype;
    tensor.shape = read_sizes(tensor, "shape", value["shape"]);

    const std::vector<Index> offsets = read_sizes(tensor, "data_offsets", value["data_offsets"]);
    const std::string range = detail::shape_text(offsets);
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      tensor.fail("data_offsets", range, "[begin, end] with begin <= end");
    }
    if (offsets[1] > static_cast<Index>(data.size())) {
      tensor.fail("data_offsets past the end of the file", range,
                  "an end of at most " + std::to_string(data.size()));
    }
    tensor.bytes = data.subspan(static_cast<std::size_t>(offsets[0]),
                                static_cast<std::size_t>(offsets[1] - offsets[0]));
    tensor.check_size();
    return tensor;
  }

  static std::vector<Index> read_sizes(const StoredTensor& tensor, const std::string& key,
                                       const Json& value) {
    if (!value.is_array()) tensor.fail(key, detail::excerpt(value), "an array");
    std::vector<Index> sizes;
    for (const Json& size : value) {
      // A negative, fractional or huge number is never of the parser's unsigned kind.
      if (!size.is_number_unsigned() || !std::in_range<Index>(size.get<std::uint64_t>())) {
        tensor.fail(key, detail::excerpt(size), "integers from 0 to 2^63 - 1");
      }
      sizes.push_back(size.get<Index>());
    }
    return sizes;
  }

  /// The tensors lie one after another and fill the data exactly.
  void check_layout(std::span<const std::byte> data) const {
    std::vector<const StoredTensor*> order;
    for (const auto& [name, tensor] : tensors_) order.push_back(&tensor);
    std::ranges::sort(order, [](const StoredTensor* a, const StoredTensor* b) {
      return std::pair(a->bytes.data(), a->bytes.size()) <
             std::pair(b->bytes.data(), b->bytes.size());
    });
    std::size_t end = 0;
    for (const StoredTensor* tensor : order) {
      const auto begin = static_cast<std::size_t>(tensor->bytes.data() - data.data());
      if (begin != end) {
        tensor->fail(begin < end ? "overlaps the tensor before it" : "hole in the data before it",
                     "begin " + std::to_string(begin), std::to_string(end));
      }
      end = begin + tensor->bytes.size();
    }
    if (end != data.size()) {
      fail("bytes after the last tensor", std::to_string(data.size()) + " bytes of data",
           std::to_string(end));
    }
  }

  std::map<std::string, std::string> metadata_;
};

/// A model's tensors: a single .safetensors file, a folder with model.safetensors or with
/// model.safetensors.index.json, or such an index, whose shards lie in its folder.
class Checkpoint : public StoredTensors {
 public:
  static Checkpoint open(const std::filesystem::path& path,
                         FileAccess access = FileAccess::mapped) {
    constexpr std::string_view single = "model.safetensors", index = "model.safetensors.index.json";
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      if (std::filesystem::exists(path / single, error)) return open_single(path / single, access);
      if (std::filesystem::exists(path / index, error)) return open_index(path / index, access);
      throw CheckpointError(path.string() + ": holds neither " + std::string(single) + " nor " +
                            std::string(index));
    }
    return path.extension() == ".json" ? open_index(path, access) : open_single(path, access);
  }

 private:
  using StoredTensors::StoredTensors;

  static Checkpoint open_single(const std::filesystem::path& path, FileAccess access) {
    Safetensors file = Safetensors::open(path, access);
    Checkpoint result(file.source());
    result.tensors_ = std::move(file.tensors_);
    return result;
  }

  static Checkpoint open_index(const std::filesystem::path& path, FileAccess access) {
    Checkpoint result(path.string());
    const auto fail = [&](const std::string& why) {
      throw CheckpointError(result.source() + ": " + why);
    };
    const Json index = read_json(path);
    const auto list = index.is_object() ? index.find("weight_map") : index.end();
    if (list == index.end() || !list->is_object()) fail("no object \"weight_map\"");
    std::map<std::string, StoredTensors::Map> shards;
    for (const auto& [name, value] : list->items()) {
      if (!value.is_string()) {
        fail("weight_map " + detail::in_quotes(name) + ": got " + detail::excerpt(value) +
             ", expected the name of a file");
      }
      const std::string& file = value.get_ref<const std::string&>();
      if (shards.contains(file)) continue;
      check_inside(result.source(), name, file);
      shards[file] = Safetensors::open(path.parent_path() / file, access).tensors_;
    }
    for (auto& [file, tensors] : shards) {
      for (auto& [name, tensor] : tensors) {
        const auto listed = list->find(name);
        if (listed == list->end()) {
          fail("shard " + detail::in_quotes(file) + " holds tensor " + detail::in_quotes(name) +
               ", which weight_map does not list");
        }
        if (*listed != file) {
          fail("tensor " + detail::in_quotes(name) + " is in another shard; got " +
               detail::in_quotes(file) + ", expected " + detail::excerpt(*listed));
        }
        result.tensors_.emplace(name, std::move(tensor));
      }
    }
    for (const auto& [name, file] : list->items()) {
      if (!result.contains(name)) {
        fail("tensor " + detail::in_quotes(name) + " is missing in shard " + detail::excerpt(file));
      }
    }
    return result;
  }

  /// Links are followed (download caches consist of them), paths that climb out are not.
  static void check_inside(const std::string& source, const std::string& name,
                           const std::filesystem::path& file) {
    if (file.is_relative() && !file.has_root_path() && file.has_filename() &&
        std::ranges::find(file, std::filesystem::path("..")) == file.end() &&
        file.native().find('\0') == file.native().npos) {
      return;
    }
    throw CheckpointError(source + ": weight_map " + detail::in_quotes(name) +
                          " leaves the folder; got " + detail::in_quotes(file.string()) +
                          ", expected a file inside it");
  }
};

/// A tensor to be saved: a row-major copy of the numbers, as they are or, where they are float,
/// as `To`, which rounds to nearest.
template <class To = void, class T, Index Rank>
StoredTensor stored_tensor(std::string_view name, const View<T, Rank>& numbers) {
  using From = std::remove_const_t<T>;
  using Stored = std::conditional_t<std::is_void_v<To>, From, To>;
  static_assert(std::same_as<Stored, From> ||
                (std::same_as<From, float> && !std::integral<Stored>));
  const auto owner = std::make_shared<Tensor<Stored, Rank>>(numbers.shape());
  copy(numbers, owner->view());
  const auto& extents = numbers.shape().extents;
  return {.name = std::string(name),
          .dtype = detail::dtype_of<Stored>(),
          .shape = {extents.begin(), extents.end()},
          .bytes = std::as_bytes(std::span(owner->data(), static_cast<std::size_t>(owner->size()))),
          .owner = owner,
          .file = {}};
}

namespace detail {

/// A file that appears under its name when it is complete, and not at all where that fails.
class ReplacedFile {
 public:
  explicit ReplacedFile(std::filesystem::path path) : path_(std::move(path)) {
    // Mode "x" refuses a file that exists, so two writers never share one.
    for (int attempt = 0; attempt < 1000 && file_ == nullptr; ++attempt) {
      part_ = path_;
      part_ += ".part" + std::to_string(attempt);
      file_ = std::fopen(part_.string().c_str(), "wbx");
      if (file_ == nullptr && errno != EEXIST) break;
    }
    if (file_ == nullptr) fail("cannot be created");
  }
  ReplacedFile(const ReplacedFile&) = delete;
  ReplacedFile& operator=(const ReplacedFile&) = delete;
  ~ReplacedFile() {
    if (file_ != nullptr) std::fclose(file_);
    std::error_code ignored;
    if (!done_) std::filesystem::remove(part_, ignored);
  }

  void write(std::span<const std::byte> bytes) {
    if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) {
      fail("cannot be written");
    }
  }
  void finish() {
    bool written = std::fflush(file_) == 0;
#if SEQMIX_HAS_MMAP
    // Without it a crash of the machine can leave the new name on an empty file.
    written = written && ::fsync(::fileno(file_)) == 0;
#endif
    if (!written) fail("cannot be written");
    if (std::fclose(std::exchange(file_, nullptr)) != 0) fail("cannot be written");
    std::error_code error;
    std::filesystem::rename(part_, path_, error);
    if (error) throw CheckpointError(path_.string() + ": cannot be replaced: " + error.message());
    done_ = true;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    const std::string why = std::generic_category().message(errno);
    throw CheckpointError(path_.string() + ": " + std::string(what) + ": " + why);
  }

  std::filesystem::path path_, part_;
  std::FILE* file_ = nullptr;
  bool done_ = false;
};

}  // namespace detail

/// Writes a safetensors file that replaces one of the same name at once or not at all.
///
/// The data starts at a multiple of 64 bytes, wider numbers first, so that every tensor can be
/// borrowed from a mapped file.
inline void save_safetensors(const std::filesystem::path& path, std::vector<StoredTensor> tensors,
                             const std::map<std::string, std::string>& metadata = {}) {
  std::ranges::stable_sort(tensors, std::greater<>(),
                           [](const StoredTensor& tensor) { return size_of(tensor.dtype); });
  Json description = Json::object();
  if (!metadata.empty()) description["__metadata__"] = metadata;
  Index end = 0;
  for (StoredTensor& tensor : tensors) {
    tensor.file = path.string();
    const Index begin = std::exchange(end, end + static_cast<Index>(tensor.bytes.size()));
    tensor.check_size();
    if (tensor.name == "__metadata__" || description.contains(tensor.name)) {
      tensor.fail("name is taken", detail::in_quotes(tensor.name), "a name of its own");
    }
    description[tensor.name] = {{"dtype", std::string(to_string(tensor.dtype))},
                                {"shape", tensor.shape},
                                {"data_offsets", {begin, end}}};
  }
  std::string header;
  try {
    header = description.dump();
  } catch (const Json::exception&) {
    throw CheckpointError(path.string() + ": a tensor's name or a metadata text is not UTF-8");
  }
  constexpr std::size_t prefix = sizeof(std::uint64_t);
  header.resize(
      static_cast<std::size_t>(round_up(static_cast<Index>(prefix + header.size()), alignment)) -
          prefix,
      ' ');
  if (header.size() > json_size_limit) {
    throw CheckpointError(path.string() + ": header too long; got " +
                          std::to_string(header.size()) + " bytes, expected at most " +
                          std::to_string(json_size_limit));
  }
  const std::uint64_t length = header.size();
  detail::ReplacedFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(header)));
  for (const StoredTensor& tensor : tensors) file.write(tensor.bytes);
  file.finish();
}

#undef SEQMIX_HAS_MMAP

SEQMIX_END_NAMESPACE
}  // namespace seqmix
