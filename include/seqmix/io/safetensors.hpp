#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <concepts>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#define SEQMIX_HAS_POSIX_FILES 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define SEQMIX_HAS_POSIX_FILES 0
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

/// The bytes of a tensor, or nothing where extents and strides of it do not fit in `Index`.
inline std::optional<Index> stored_size(DType dtype, std::span<const Index> shape) {
  Index size = facts(dtype).bytes;
  bool empty = false;
  for (const Index extent : shape) {
    empty = empty || extent == 0;
    if (extent < 0 || __builtin_mul_overflow(size, extent == 0 ? 1 : extent, &size)) return {};
  }
  return empty ? 0 : size;
}

[[noreturn]] inline void refuse_tensor(std::string_view file, std::string_view tensor,
                                       std::string_view rule, std::string_view got,
                                       std::string_view expected) {
  std::string text(file);
  text.append(": tensor ").append(in_quotes(tensor)).append(": ").append(rule);
  throw CheckpointError(text.append("; got ").append(got).append(", expected ").append(expected));
}

/// Refuses a tensor whose bytes are not as many as dtype and shape say.
inline void check_stored_size(std::string_view file, std::string_view tensor, DType dtype,
                              std::span<const Index> shape, Index bytes) {
  const std::optional<Index> expected = stored_size(dtype, shape);
  if (!expected) {
    refuse_tensor(file, tensor, "shape overflows", shape_text(shape), "a size of at most 63 bits");
  }
  if (*expected != bytes) {
    refuse_tensor(file, tensor, "size does not fit the shape", std::to_string(bytes) + " bytes",
                  std::to_string(*expected) + " for " + std::string(facts(dtype).name) + " " +
                      shape_text(shape));
  }
}

/// A regular file that is read piece by piece, by any number of threads.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path) : name_(path.string()) {
#if SEQMIX_HAS_POSIX_FILES
    // A pipe would block here without O_NONBLOCK, before its kind is known.
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file_ < 0) fail("cannot be opened: " + std::generic_category().message(errno));
    struct stat status {};
    const bool regular = ::fstat(file_, &status) == 0 && S_ISREG(status.st_mode);
    if (!regular) {
      ::close(file_);
      fail("not a regular file");
    }
    size_ = static_cast<Index>(status.st_size);
#else
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) fail("no such file, or not a regular one");
    size_ = static_cast<Index>(std::filesystem::file_size(path, error));
    if (error) fail("cannot be opened: " + error.message());
#endif
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
#if SEQMIX_HAS_POSIX_FILES
  ~InputFile() { ::close(file_); }
#endif

  Index size() const { return size_; }
  void read(Index offset, std::span<std::byte> to) const {
#if SEQMIX_HAS_POSIX_FILES
    while (!to.empty()) {
      const ssize_t count = ::pread(file_, to.data(), to.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail("cannot be read: " + std::generic_category().message(errno));
      if (count == 0) fail_short(offset);
      offset += count;
      to = to.subspan(static_cast<std::size_t>(count));
    }
#else
    std::ifstream stream(name_, std::ios::binary);
    stream.seekg(offset);
    stream.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
    if (!stream) fail_short(offset);
#endif
  }
#if SEQMIX_HAS_POSIX_FILES
  /// The whole file as memory, or a null pointer where it is empty.
  std::shared_ptr<const void> map() const {
    if (size_ == 0) return nullptr;
    const auto size = static_cast<std::size_t>(size_);
    void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file_, 0);
    if (data == MAP_FAILED) fail("cannot be mapped: " + std::generic_category().message(errno));
    return {data, [size](void* mapped) { ::munmap(mapped, size); }};
  }
#endif

 private:
  [[noreturn]] void fail(std::string_view why) const {
    throw CheckpointError(name_ + ": " + std::string(why));
  }
  [[noreturn]] void fail_short(Index offset) const {
    fail("has become shorter since it was opened; got nothing at byte " + std::to_string(offset) +
         ", expected " + std::to_string(size_) + " bytes");
  }

  std::string name_;
  Index size_ = 0;
#if SEQMIX_HAS_POSIX_FILES
  int file_ = -1;
#endif
};

}  // namespace detail

inline std::string_view to_string(DType dtype) { return detail::facts(dtype).name; }
/// The bytes of one number.
constexpr Index size_of(DType dtype) { return detail::facts(dtype).bytes; }

/// The bytes of a tensor: in memory, or in a file until they are loaded.
class StoredBytes {
 public:
  StoredBytes() = default;
  /// `owner` keeps the bytes alive; without one the caller does.
  StoredBytes(std::span<const std::byte> bytes, std::shared_ptr<const void> owner = nullptr)
      : data_(bytes.data()), owner_(std::move(owner)), size_(static_cast<Index>(bytes.size())) {}
  explicit StoredBytes(std::shared_ptr<const detail::InputFile> file)
      : file_(std::move(file)), size_(file_->size()) {}

  Index size() const { return size_; }
  StoredBytes slice(Index first, Index count) const {
    StoredBytes part = *this;
    if (data_ != nullptr) part.data_ += first;
    part.offset_ += first, part.size_ = count;
    return part;
  }
  /// The same bytes, in memory. A file that has become shorter is a `CheckpointError`.
  StoredBytes load() const {
    if (file_ == nullptr) return *this;
    const auto copy = std::make_shared<Tensor<std::byte, 1>>(Shape<1>{size_});
    const std::span<std::byte> bytes(copy->data(), static_cast<std::size_t>(size_));
    file_->read(offset_, bytes);
    return StoredBytes(bytes, copy);
  }

  /// Throws where they are not in memory.
  const std::byte* data() const {
    if (file_ != nullptr) throw CheckpointError("bytes of a file are used before they are loaded");
    return data_;
  }
  std::span<const std::byte> span() const { return {data(), static_cast<std::size_t>(size_)}; }
  const std::shared_ptr<const void>& owner() const { return owner_; }

 private:
  std::shared_ptr<const detail::InputFile> file_;  // null: in memory
  const std::byte* data_ = nullptr;
  std::shared_ptr<const void> owner_;
  Index offset_ = 0, size_ = 0;
};

/// A tensor as it lies in a file: row-major, little-endian, at any address.
struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<Index> shape;  // empty: one number
  StoredBytes bytes;
  std::string file;  // where it comes from, for errors

  [[noreturn]] void fail(std::string_view rule, std::string_view got,
                         std::string_view expected) const {
    detail::refuse_tensor(file, name, rule, got, expected);
  }

  /// Throws where the bytes are not as many as dtype and shape say.
  void check_size() const { detail::check_stored_size(file, name, dtype, shape, bytes.size()); }

  /// The numbers as S; a tensor without axes is read as [1]. Floating point reads F64, F32, F16 and
  /// BF16 (only F64 to float rounds; what overflows is refused), integers read integers that fit.
  /// The bytes are borrowed where they are an S already and lie at an address fit for it. Nothing
  /// is allocated before shape and type are known to fit.
  template <class S>
  requires(std::floating_point<S> ||
           std::integral<S>) Parameter<S, 1> numbers(std::span<const Index> expected)
  const {
    const bool scalar = shape.empty() && std::ranges::equal(expected, std::array<Index, 1>{1});
    if (!scalar && !std::ranges::equal(shape, expected)) {
      fail("wrong shape", detail::shape_text(shape), text_of_extents(expected));
    }
    check_size();
    const auto convert = converter<S>();
    const StoredBytes loaded = bytes.load();
    const Shape<1> size{bytes.size() / size_of(dtype)};
    const bool aligned = reinterpret_cast<std::uintptr_t>(loaded.data()) % alignof(S) == 0;
    if (dtype == detail::dtype_of<S>() && aligned && loaded.owner() != nullptr) {
      return {View<const S, 1>(reinterpret_cast<const S*>(loaded.data()), size), loaded.owner()};
    }
    Tensor<S, 1> result(size);
    (this->*convert)(loaded.data(),
                     std::span<S>(result.data(), static_cast<std::size_t>(result.size())));
    return result;
  }
  /// The same in their shape.
  template <class S, Index Rank>
  Parameter<S, Rank> parameter(const Shape<Rank>& expected) const {
    return numbers<S>(expected.extents).reshape(expected);
  }

  /// The numbers of an integer tensor of any shape, row-major.
  Tensor<std::int64_t, 1> integers() const {
    const auto convert = converter<std::int64_t>();
    const StoredBytes loaded = bytes.load();
    Tensor<std::int64_t, 1> numbers(Shape<1>{bytes.size() / size_of(dtype)});
    (this->*convert)(loaded.data(), std::span<std::int64_t>(
                                        numbers.data(), static_cast<std::size_t>(numbers.size())));
    return numbers;
  }

 private:
  template <class S>
  using Convert = void (StoredTensor::*)(const std::byte* from, std::span<S> to) const;

  template <class S>
  Convert<S> converter() const {
    if constexpr (std::integral<S>) {
      switch (dtype) {
        case DType::boolean:
        case DType::u8:
          return &StoredTensor::convert<std::uint8_t, S>;
        case DType::i8:
          return &StoredTensor::convert<std::int8_t, S>;
        case DType::u16:
          return &StoredTensor::convert<std::uint16_t, S>;
        case DType::i16:
          return &StoredTensor::convert<std::int16_t, S>;
        case DType::u32:
          return &StoredTensor::convert<std::uint32_t, S>;
        case DType::i32:
          return &StoredTensor::convert<std::int32_t, S>;
        case DType::u64:
          return &StoredTensor::convert<std::uint64_t, S>;
        case DType::i64:
          return &StoredTensor::convert<std::int64_t, S>;
        default:
          fail("wrong dtype", to_string(dtype), "integers");
      }
    } else {
      switch (dtype) {
        case DType::f16:
          return &StoredTensor::convert<float16, S>;
        case DType::bf16:
          return &StoredTensor::convert<bfloat16, S>;
        case DType::f32:
          return &StoredTensor::convert<float, S>;
        case DType::f64:
          return &StoredTensor::convert<double, S>;
        default:
          fail("wrong dtype", to_string(dtype), "F64, F32, F16 or BF16");
      }
    }
  }

  template <class T, class S>
  void convert(const std::byte* from, std::span<S> to) const {
    if constexpr (std::same_as<T, S>) {
      if (!to.empty()) std::memcpy(to.data(), from, to.size_bytes());
    } else {
      for (std::size_t i = 0; i < to.size(); ++i) {
        T value;
        std::memcpy(&value, from + i * sizeof(T), sizeof(T));
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

namespace detail {

/// What a header says of a tensor, in few bytes: a header may describe a million of them.
struct TensorRecord {
  std::string name;
  std::vector<Index> shape;
  Index offset = 0;
  std::uint32_t file = 0;
  DType dtype = DType::f32;

  Index size() const { return *stored_size(dtype, shape); }
};
/// Records by ascending name. A list of them grows without being copied.
using TensorRecords = std::deque<TensorRecord>;

/// Orders the records; the name of one that another has, or a null pointer.
inline const std::string* sort_records(TensorRecords& records) {
  std::ranges::sort(records, {}, &TensorRecord::name);
  const auto twin = std::ranges::adjacent_find(records, {}, &TensorRecord::name);
  return twin == records.end() ? nullptr : &twin->name;
}

}  // namespace detail

/// The tensors of a file or of several, by name.
class StoredTensors {
 public:
  /// What they come from, as errors call it.
  const std::string& source() const { return source_; }
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const detail::TensorRecord& record : records_) result.push_back(record.name);
    return result;
  }
  bool contains(std::string_view name) const {
    const auto found = first_from(name);
    return found != records_.end() && found->name == name;
  }

  /// A tensor whose bytes may still lie in the file.
  StoredTensor entry(std::string_view name) const {
    if (!contains(name)) {
      throw CheckpointError(source_ + ": tensor " + detail::in_quotes(name) + " is missing");
    }
    const detail::TensorRecord& record = *first_from(name);
    const auto& [file, bytes] = files_[record.file];
    return {.name = record.name,
            .dtype = record.dtype,
            .shape = record.shape,
            .bytes = bytes.slice(record.offset, record.size()),
            .file = file};
  }
  /// The numbers of the tensor `name` as S; see `StoredTensor`.
  template <class S>
  Parameter<S, 1> numbers(std::string_view name, std::span<const Index> expected) const {
    return entry(name).template numbers<S>(expected);
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
    for (auto at = first_from(prefix); at != records_.end() && at->name.starts_with(prefix); ++at) {
      if (!known.contains(at->name)) {
        throw CheckpointError(source_ + ": unexpected tensor " + detail::in_quotes(at->name) + " " +
                              detail::shape_text(at->shape));
      }
    }
  }

 protected:
  struct File {
    std::string name;
    StoredBytes data;
  };

  explicit StoredTensors(std::string source) : source_(std::move(source)) {}
  detail::TensorRecords::const_iterator first_from(std::string_view name) const {
    return std::ranges::lower_bound(records_, name, {}, &detail::TensorRecord::name);
  }

  std::string source_;
  std::vector<File> files_;
  detail::TensorRecords records_;
};

/// Tensors that lie in memory, each under its name.
class MemoryTensors : public StoredTensors {
 public:
  explicit MemoryTensors(std::vector<StoredTensor> tensors, std::string source = "memory")
      : StoredTensors(std::move(source)) {
    for (StoredTensor& tensor : tensors) {
      tensor.file = source_;
      tensor.check_size();
      records_.push_back({.name = std::move(tensor.name),
                          .shape = std::move(tensor.shape),
                          .offset = 0,
                          .file = static_cast<std::uint32_t>(files_.size()),
                          .dtype = tensor.dtype});
      files_.push_back({source_, std::move(tensor.bytes)});
    }
    if (const std::string* const name = detail::sort_records(records_)) {
      throw CheckpointError(source_ + ": two tensors are called " + detail::in_quotes(*name));
    }
  }
};

namespace detail {

/// Reads a header straight into records, without a document of it in between.
class HeaderReader : public JsonEvents<HeaderReader> {
 public:
  using Metadata = std::map<std::string, std::string>;

  HeaderReader(std::string_view file, Index data_size, TensorRecords& records, Metadata& metadata)
      : JsonEvents(file, fixed_memory),
        data_size_(data_size),
        records_(records),
        metadata_(metadata) {}

  void member(const std::string& key) {
    if (place_ == Place::header) {
      record_ = {};
      record_.name = key, given_ = 0;
    } else if (place_ == Place::metadata) {
      const auto [text, inserted] = metadata_.try_emplace(key);
      if (!inserted) refuse_duplicate(key);
      need(tree_node + key.size());
      text_ = &*text;
    } else {
      field_ = static_cast<std::size_t>(std::ranges::find(fields, key) - fields.begin());
      if (field_ == fields.size()) refuse("unknown key", in_quotes(key), all_fields);
      if ((given_ >> field_ & 1U) != 0) refuse_duplicate(key);
      given_ |= 1U << field_;
    }
  }
  void value(const Json& value) {
    if (place_ == Place::sizes) return add_size(value);
    if (place_ == Place::tensor && field_ == dtype && value.is_string()) {
      const auto& name = value.get_ref<const std::string&>();
      const auto known = std::ranges::find(dtype_table, name, &DTypeFacts::name);
      if (known != dtype_table.end()) {
        record_.dtype = known->dtype;
        return;
      }
    }
    if (place_ == Place::metadata && value.is_string()) {
      text_->second = value.get_ref<const std::string&>();
      return need(text_->second.size());
    }
    refuse_type(excerpt(value));
  }
  void open(bool object) {
    if (place_ == Place::start) {
      place_ = Place::header;
    } else if (place_ == Place::header && object && record_.name != "__metadata__") {
      place_ = Place::tensor;
    } else if (place_ == Place::header && object) {
      if (std::exchange(has_metadata_, true)) refuse_duplicate(record_.name);
      place_ = Place::metadata;
    } else if (place_ == Place::tensor && !object && field_ != dtype) {
      place_ = Place::sizes;
      sizes_.clear();
    } else {
      refuse_type(object ? "an object" : "an array");
    }
  }
  void close() {
    if (place_ == Place::sizes) {
      field_ == shape ? record_.shape.assign(sizes_.begin(), sizes_.end()) : set_range();
      place_ = Place::tensor;
    } else {
      if (place_ == Place::tensor) finish_tensor();
      place_ = Place::header;
    }
  }

 private:
  enum class Place { start, header, metadata, tensor, sizes };
  enum Field : std::size_t { dtype, shape, data_offsets };
  static constexpr std::array<std::string_view, 3> fields{"dtype", "shape", "data_offsets"};
  static constexpr std::string_view all_fields = "dtype, shape and data_offsets";
  static constexpr std::size_t fixed_memory = std::size_t{1} << 20, allocated = 16,
                               tree_node = 48 + 2 * sizeof(std::string);

  [[noreturn]] void refuse(std::string_view rule, std::string_view got,
                           std::string_view expected) const {
    refuse_tensor(name_, record_.name, rule, got, expected);
  }
  /// Refuses a value that is not what stands at this place.
  [[noreturn]] void refuse_type(std::string_view got) const {
    const auto refuse_metadata = [&](const std::string& which, std::string_view expected) {
      throw CheckpointError(name_ + ": __metadata__ " + which + "; got " + std::string(got) +
                            ", expected " + std::string(expected));
    };
    if (place_ == Place::metadata) {
      refuse_metadata(in_quotes(text_->first) + " is no string", "a string");
    }
    if (place_ == Place::sizes) refuse(fields[field_], got, "integers from 0 to 2^63 - 1");
    if (place_ == Place::tensor && field_ == dtype) {
      refuse("unknown dtype", got, "a dtype of safetensors");
    }
    if (place_ == Place::tensor) refuse(fields[field_], got, "an array");
    if (record_.name == "__metadata__") refuse_metadata("is no object", "an object");
    refuse("description", got, "an object");
  }

  void add_size(const Json& value) {
    // A negative, fractional or huge number is never of the parser's unsigned kind.
    if (!value.is_number_unsigned() || !std::in_range<Index>(value.get<std::uint64_t>())) {
      refuse_type(excerpt(value));
    }
    // The list is shared by all tensors: it is what the largest needs, and as much while it grows.
    if (sizes_.size() == sizes_.capacity()) need((2 * sizes_.size() + 1) * sizeof(Index));
    sizes_.push_back(value.get<Index>());
  }
  void set_range() {
    const std::string range = shape_text(sizes_);
    if (sizes_.size() != 2 || sizes_[0] > sizes_[1]) {
      refuse("data_offsets", range, "[begin, end] with begin <= end");
    }
    if (sizes_[1] > data_size_) {
      refuse("data_offsets past the end of the file", range,
             "an end of at most " + std::to_string(data_size_));
    }
    record_.offset = sizes_[0], bytes_ = sizes_[1] - sizes_[0];
  }
  void finish_tensor() {
    for (std::size_t i = 0; i < fields.size(); ++i) {
      if ((given_ >> i & 1U) == 0) {
        refuse("description", "no " + std::string(fields[i]), all_fields);
      }
    }
    check_stored_size(name_, record_.name, record_.dtype, record_.shape, bytes_);
    need(sizeof(TensorRecord) + sizeof(const TensorRecord*) + record_.name.capacity() + allocated +
         record_.shape.size() * sizeof(Index) + allocated);
    records_.push_back(std::move(record_));
  }

  Index data_size_;
  TensorRecords& records_;
  Metadata& metadata_;
  Place place_ = Place::start;
  bool has_metadata_ = false;
  TensorRecord record_;              // its name is the key of the header that was read last
  Index bytes_ = 0;                  // of `record_`
  unsigned given_ = 0;               // the fields of `record_` that were read
  std::size_t field_ = 0;            // the last of them
  Metadata::value_type* text_ = {};  // the metadata that was read last
  std::vector<Index> sizes_;
};

/// What a file is that starts with such bytes and is no safetensors file; empty where that is
/// unknown.
inline std::string foreign_format(std::string_view start) {
  using namespace std::string_view_literals;
  constexpr std::array<std::pair<std::string_view, std::string_view>, 6> known{{
      {"PK\x03\x04"sv,
       "a zip archive, as .pt and .bin files of PyTorch are: save the tensors with "
       "safetensors"},
      {"\x80\x02"sv,
       "a pickle, as old .pt and .bin files of PyTorch are: save the tensors with "
       "safetensors"},
      {"GGUF"sv, "a GGUF file"},
      {"\x89HDF"sv, "an HDF5 file"},
      {"version https://git-lfs"sv, "what stands for a file in Git LFS: fetch the file itself"},
      {"{"sv, "JSON text"},
  }};
  for (const auto& [first, what] : known) {
    if (start.starts_with(first)) return in_quotes(start.substr(0, 8)).append(", ").append(what);
  }
  const auto is_text = [](char c) {
    return c == '\t' || c == '\n' || c == '\r' || (c >= ' ' && c <= '~');
  };
  if (start.empty() || !std::ranges::all_of(start, is_text)) return {};
  return in_quotes(start) + ", text";
}

}  // namespace detail

/// How the tensors of a file come into memory.
enum class FileAccess {
  /// Each is read when it is asked for; the file stays open behind the tensors.
  read,
  /// All are borrowed from a mapping of the file, which must keep its length and its bytes as long
  /// as a tensor, or a layer made of it, is in use: to touch one that is gone ends the program.
  mapped
};

/// The longest header that is read, in bytes. The format allows 100'000'000.
struct HeaderLimit {
  Index bytes = 16'000'000;
};

/// One safetensors file, whose header is checked as a whole when it is opened.
///
/// Every `CheckpointError` names the file, the tensor, what was got and what was expected. The
/// header takes at most four times its length in memory, whatever it says.
class Safetensors : public StoredTensors {
 public:
  /// Parameters that borrow the file's bytes keep them alive. Where files cannot be mapped they are
  /// read.
  static Safetensors open(const std::filesystem::path& path, FileAccess access = FileAccess::read,
                          HeaderLimit limit = {}) {
    const auto file = std::make_shared<const detail::InputFile>(path);
#if SEQMIX_HAS_POSIX_FILES
    if (access == FileAccess::mapped) {
      const std::shared_ptr<const void> mapped = file->map();
      const std::span<const std::byte> bytes(static_cast<const std::byte*>(mapped.get()),
                                             static_cast<std::size_t>(file->size()));
      return Safetensors(path.string(), StoredBytes(bytes, mapped), limit);
    }
#endif
    static_cast<void>(access);
    return Safetensors(path.string(), StoredBytes(file), limit);
  }
  static Safetensors parse(std::vector<std::byte> bytes, std::string name, HeaderLimit limit = {}) {
    const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    return Safetensors(std::move(name), StoredBytes(*owner, owner), limit);
  }

  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  friend class Checkpoint;

  Safetensors(std::string name, const StoredBytes& file, HeaderLimit limit)
      : StoredTensors(std::move(name)) {
    constexpr Index prefix = sizeof(std::uint64_t);
    const auto text_of = [](const StoredBytes& bytes) {
      return std::string_view(reinterpret_cast<const char*>(bytes.data()),
                              static_cast<std::size_t>(bytes.size()));
    };
    const auto fail_frame = [&](std::string_view rule, const std::string& got,
                                const std::string& expected) {
      const StoredBytes start = file.slice(0, std::min<Index>(file.size(), 24)).load();
      if (const std::string what = detail::foreign_format(text_of(start)); !what.empty()) {
        throw CheckpointError(source_ + ": no safetensors file; it starts with " + what);
      }
      fail(rule, got, expected);
    };
    if (file.size() < prefix) {
      fail_frame("truncated before the header's length", std::to_string(file.size()) + " bytes",
                 "at least 8");
    }
    std::uint64_t length = 0;
    std::memcpy(&length, file.slice(0, prefix).load().data(), prefix);
    if (std::cmp_greater(length, limit.bytes)) {
      fail_frame("header too long", std::to_string(length) + " bytes",
                 "at most " + std::to_string(limit.bytes));
    }
    if (std::cmp_greater(length, file.size() - prefix)) {
      fail_frame("header longer than the file", std::to_string(length) + " bytes",
                 "at most " + std::to_string(file.size() - prefix));
    }
    const Index data = prefix + static_cast<Index>(length);
    files_.push_back({source_, file.slice(data, file.size() - data)});

    const StoredBytes header_bytes = file.slice(prefix, data - prefix).load();
    const std::string_view header = text_of(header_bytes);
    if (!header.starts_with('{')) {
      fail("header does not start with '{'", detail::in_quotes(header.substr(0, 1)), "\"{\"");
    }
    detail::HeaderReader(source_, file.size() - data, records_, metadata_).read(header);
    if (const std::string* const twin = detail::sort_records(records_)) {
      throw CheckpointError(source_ + ": duplicate key " + detail::in_quotes(*twin));
    }
    check_layout();
  }

  [[noreturn]] void fail(std::string_view rule, std::string_view got,
                         std::string_view expected) const {
    throw CheckpointError(source_ + ": " + std::string(rule) + "; got " + std::string(got) +
                          ", expected " + std::string(expected));
  }

  /// The tensors lie one after another and fill the data exactly.
  void check_layout() const {
    std::vector<const detail::TensorRecord*> order;
    order.reserve(records_.size());
    for (const detail::TensorRecord& record : records_) order.push_back(&record);
    std::ranges::sort(order, {}, [](const detail::TensorRecord* record) {
      return std::pair(record->offset, record->size());
    });
    Index end = 0;
    for (const detail::TensorRecord* const record : order) {
      const Index begin = record->offset;
      if (begin != end) {
        detail::refuse_tensor(
            source_, record->name,
            begin < end ? "overlaps the tensor before it" : "hole in the data before it",
            "begin " + std::to_string(begin), std::to_string(end));
      }
      end += record->size();
    }
    const Index size = files_.front().data.size();
    if (end != size) {
      fail("bytes after the last tensor", std::to_string(size) + " bytes of data",
           std::to_string(end));
    }
  }

  std::map<std::string, std::string> metadata_;
};

/// A model's tensors: a single .safetensors file, a folder with model.safetensors or with
/// model.safetensors.index.json, or such an index, whose shards lie in its folder.
class Checkpoint : public StoredTensors {
 public:
  /// `limit`: of the header of each file.
  static Checkpoint open(const std::filesystem::path& path, FileAccess access = FileAccess::read,
                         HeaderLimit limit = {}) {
    constexpr std::string_view single = "model.safetensors", index = "model.safetensors.index.json";
    const auto open_single = [&](const std::filesystem::path& file) {
      Checkpoint result(file.string());
      result.add(Safetensors::open(file, access, limit));
      return result;
    };
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      if (std::filesystem::exists(path / single, error)) return open_single(path / single);
      if (std::filesystem::exists(path / index, error)) {
        return open_index(path / index, access, limit);
      }
      throw CheckpointError(path.string() + ": holds neither " + std::string(single) + " nor " +
                            std::string(index));
    }
    return path.extension() == ".json" ? open_index(path, access, limit) : open_single(path);
  }

 private:
  using StoredTensors::StoredTensors;

  void add(Safetensors file) {
    for (detail::TensorRecord& record : file.records_) {
      record.file = static_cast<std::uint32_t>(files_.size());
      records_.push_back(std::move(record));
    }
    files_.push_back(std::move(file.files_.front()));
  }

  static Checkpoint open_index(const std::filesystem::path& path, FileAccess access,
                               HeaderLimit limit) {
    Checkpoint result(path.string());
    const auto fail = [&](const std::string& why) {
      throw CheckpointError(result.source() + ": " + why);
    };
    const detail::JsonDocument document(read_json(path));
    const Json& index = document;
    const auto list = index.is_object() ? index.find("weight_map") : index.end();
    if (list == index.end() || !list->is_object()) fail("no object \"weight_map\"");
    std::set<std::string> shards;
    for (const auto& [name, value] : list->items()) {
      if (!value.is_string()) {
        fail("weight_map " + detail::in_quotes(name) + ": got " + detail::excerpt(value) +
             ", expected the name of a file");
      }
      const std::string& shard = value.get_ref<const std::string&>();
      if (!shards.contains(shard)) check_inside(result.source(), name, shard);
      shards.insert(shard);
    }
    for (const std::string& shard : shards) {
      Safetensors file = Safetensors::open(path.parent_path() / shard, access, limit);
      for (const detail::TensorRecord& record : file.records_) {
        const auto listed = list->find(record.name);
        if (listed == list->end()) {
          fail("shard " + detail::in_quotes(shard) + " holds tensor " +
               detail::in_quotes(record.name) + ", which weight_map does not list");
        }
        if (listed->get_ref<const std::string&>() != shard) {
          fail("tensor " + detail::in_quotes(record.name) + " is in another shard; got " +
               detail::in_quotes(shard) + ", expected " + detail::excerpt(*listed));
        }
      }
      result.add(std::move(file));
    }
    detail::sort_records(result.records_);
    for (const auto& [name, shard] : list->items()) {
      if (!result.contains(name)) {
        fail("tensor " + detail::in_quotes(name) + " is missing in shard " +
             detail::excerpt(shard));
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
/// as `To`, which rounds to nearest; a number that overflows there is a `CheckpointError`.
template <class To = void, class T, Index Rank>
StoredTensor stored_tensor(std::string_view name, const View<T, Rank>& numbers) {
  using From = std::remove_const_t<T>;
  using Stored = std::conditional_t<std::is_void_v<To>, From, To>;
  static_assert(std::same_as<Stored, From> ||
                (std::same_as<From, float> && !std::integral<Stored>));
  const auto owner = std::make_shared<Tensor<Stored, Rank>>(numbers.shape());
  copy(numbers, owner->view());
  const auto& extents = numbers.shape().extents;
  const std::span<const Stored> stored(owner->data(), static_cast<std::size_t>(owner->size()));
  StoredTensor tensor{.name = std::string(name),
                      .dtype = detail::dtype_of<Stored>(),
                      .shape = {extents.begin(), extents.end()},
                      .bytes = {std::as_bytes(stored), owner},
                      .file = "to be saved"};
  if constexpr (sizeof(Stored) < sizeof(From)) {
    const auto finite = [](auto number) { return std::isfinite(static_cast<float>(number)); };
    if (!std::ranges::all_of(stored, finite)) {
      Tensor<From, Rank> given(numbers.shape());
      copy(numbers, given.view());
      for (std::size_t i = 0; i < stored.size(); ++i) {
        const From number = given.data()[i];
        if (finite(number) && !finite(stored[i])) {
          tensor.fail("number " + std::to_string(i) + " does not fit", detail::excerpt(number),
                      "a number that " + std::string(to_string(tensor.dtype)) + " holds");
        }
      }
    }
  }
  return tensor;
}

namespace detail {

/// A file that appears under its name when it is complete, and not at all where that fails; links
/// are followed.
class ReplacedFile {
 public:
  explicit ReplacedFile(const std::filesystem::path& path) : name_(path.string()), path_(path) {
    std::error_code error;
    for (int links = 0; std::filesystem::is_symlink(path_, error); ++links) {
      const std::filesystem::path target = std::filesystem::read_symlink(path_, error);
      if (error || links == 40)
        throw CheckpointError(name_ + ": cannot be replaced: a link to itself");
      path_ = path_.parent_path() / target;  // which an absolute target replaces
    }
    const auto status = std::filesystem::status(path_, error);
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
      throw CheckpointError(name_ + ": cannot be replaced: it is no regular file");
    }
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
#if SEQMIX_HAS_POSIX_FILES
    // Without it a crash of the machine can leave the new name on an empty file.
    written = written && ::fsync(::fileno(file_)) == 0;
#endif
    if (!written) fail("cannot be written");
    if (std::fclose(std::exchange(file_, nullptr)) != 0) fail("cannot be written");
    std::error_code error;
    std::filesystem::rename(part_, path_, error);
    if (error) throw CheckpointError(name_ + ": cannot be replaced: " + error.message());
    done_ = true;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    const std::string why = std::generic_category().message(errno);
    throw CheckpointError(name_ + ": " + std::string(what) + ": " + why);
  }

  std::string name_;
  std::filesystem::path path_, part_;
  std::FILE* file_ = nullptr;
  bool done_ = false;
};

}  // namespace detail

/// Writes a safetensors file that replaces one of the same name at once or not at all. Links are
/// followed; what exists and is no regular file is refused.
///
/// The data starts at a multiple of 64 bytes, wider numbers first, so that every tensor can be
/// borrowed from a mapped file.
inline void save_safetensors(const std::filesystem::path& path, std::vector<StoredTensor> tensors,
                             const std::map<std::string, std::string>& metadata = {}) {
  std::ranges::stable_sort(tensors, std::greater<>(),
                           [](const StoredTensor& tensor) { return size_of(tensor.dtype); });
  const auto quoted = [&](const std::string& text) {
    try {
      return Json(text).dump();
    } catch (const Json::exception&) {
      throw CheckpointError(path.string() + ": a tensor's name or a metadata text is not UTF-8");
    }
  };
  std::string header = "{";
  const auto add = [&](const std::string& key) -> std::string& {
    return header.append(header.size() > 1 ? "," : "").append(quoted(key)).append(":");
  };
  if (!metadata.empty()) {
    add("__metadata__") += "{";
    for (const auto& [key, text] : metadata) {
      header.append(header.back() == '{' ? "" : ",").append(quoted(key)).append(":");
      header += quoted(text);
    }
    header += "}";
  }
  std::set<std::string_view> names{"__metadata__"};
  Index end = 0;
  for (StoredTensor& tensor : tensors) {
    tensor.file = path.string();
    const Index begin = std::exchange(end, end + tensor.bytes.size());
    tensor.check_size();
    if (!names.insert(tensor.name).second) {
      tensor.fail("name is taken", detail::in_quotes(tensor.name), "a name of its own");
    }
    add(tensor.name).append("{\"dtype\":\"").append(to_string(tensor.dtype));
    header.append("\",\"shape\":[");
    for (const Index extent : tensor.shape) {
      header.append(header.back() == '[' ? "" : ",").append(std::to_string(extent));
    }
    header.append("],\"data_offsets\":[").append(std::to_string(begin)).append(",");
    header.append(std::to_string(end)).append("]}");
  }
  header += "}";
  constexpr std::size_t prefix = sizeof(std::uint64_t), longest = 100'000'000;  // the format's
  header.resize(
      static_cast<std::size_t>(round_up(static_cast<Index>(prefix + header.size()), alignment)) -
          prefix,
      ' ');
  if (header.size() > longest) {
    throw CheckpointError(path.string() + ": header too long; got " +
                          std::to_string(header.size()) + " bytes, expected at most " +
                          std::to_string(longest));
  }
  const std::uint64_t length = header.size();
  detail::ReplacedFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(header)));
  for (const StoredTensor& tensor : tensors) file.write(tensor.bytes.load().span());
  file.finish();
}

#undef SEQMIX_HAS_POSIX_FILES

SEQMIX_END_NAMESPACE
}  // namespace seqmix
