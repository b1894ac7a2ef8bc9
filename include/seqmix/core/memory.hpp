#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "seqmix/core/numeric.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Every owned buffer starts at a multiple of this many bytes, whatever the compiler flags.
inline constexpr Index alignment = 64;

namespace detail {

/// A large page of memory. Streams over megabytes at a row's distance would look up more small ones
/// than the processor keeps addresses of.
inline constexpr Index large_page = Index{1} << 21;

/// Where a buffer of so many bytes begins.
inline std::align_val_t buffer_alignment(Index bytes) {
  return std::align_val_t{
      static_cast<std::size_t>(bytes < 2 * large_page ? alignment : large_page)};
}
inline void* allocate_buffer(Index bytes) {
  void* const memory = ::operator new(static_cast<std::size_t>(bytes), buffer_alignment(bytes));
#if defined(__linux__)
  if (bytes >= 2 * large_page) {  // advice: that the system does not follow it is no error
    madvise(memory, static_cast<std::size_t>(bytes / large_page * large_page), MADV_HUGEPAGE);
  }
#endif
  return memory;
}
inline void free_buffer(void* memory, Index bytes) {
  ::operator delete(memory, buffer_alignment(bytes));
}

}  // namespace detail

/// Scratch memory that is handed out like a stack and never moves while it is in use.
///
/// It grows by whole blocks; when the last user has gone, several blocks are replaced by one, so
/// that the same work done again allocates nothing.
class Arena {
 public:
  struct Mark {
    std::size_t block = 0;
    Index used = 0;
  };

  void* allocate(Index bytes) {
    bytes = round_up(std::max<Index>(bytes, 1), alignment);
    while (current_ < blocks_.size()) {
      Block& block = blocks_[current_];
      if (block.used + bytes <= block.size) {
        void* result = block.memory.get() + block.used;
        block.used += bytes;
        return result;
      }
      if (current_ + 1 == blocks_.size()) break;
      blocks_[++current_].used = 0;
    }
    add_block(std::max(bytes, std::min<Index>(2 * reserved(), largest_step)));
    current_ = blocks_.size() - 1;
    blocks_[current_].used = bytes;
    return blocks_[current_].memory.get();
  }

  Mark enter() {
    ++users_;
    if (blocks_.empty()) return {};
    return {current_, blocks_[current_].used};
  }
  void leave(Mark mark) {
    if (!blocks_.empty()) {
      current_ = mark.block;
      blocks_[current_].used = mark.used;
    }
    if (--users_ == 0 && blocks_.size() > 1) unite();
  }

  /// Makes the arena hold so many bytes in one block. Nobody may use it meanwhile.
  void reserve(Index bytes) {
    if (blocks_.size() == 1 && blocks_[0].size >= bytes) return;
    blocks_.clear();
    current_ = 0;
    add_block(round_up(std::max<Index>(bytes, 1), alignment));
  }

  /// The bytes that the arena holds.
  Index reserved() const {
    Index total = 0;
    for (const Block& block : blocks_) total += block.size;
    return total;
  }

 private:
  struct Free {
    Index bytes = 0;
    void operator()(std::byte* memory) const { detail::free_buffer(memory, bytes); }
  };
  struct Block {
    std::unique_ptr<std::byte, Free> memory;
    Index size = 0;
    Index used = 0;
  };
  static constexpr Index largest_step = Index{1} << 26;

  void unite() noexcept {
    const Index total = reserved();
    blocks_.clear();
    current_ = 0;
    try {
      add_block(total);
    } catch (const std::bad_alloc&) {
      // The arena is empty then, and grows again when it is next used.
    }
  }

  void add_block(Index bytes) {
    auto* const memory = static_cast<std::byte*>(detail::allocate_buffer(bytes));
    blocks_.push_back({std::unique_ptr<std::byte, Free>(memory, Free{bytes}), bytes, 0});
  }

  std::vector<Block> blocks_;
  std::size_t current_ = 0;
  Index users_ = 0;
};

/// Where a tensor's numbers live, the heap (the default), an arena that outlives it or nowhere, and
/// how the caches of a state are stored there.
class Memory {
 public:
  Memory() = default;
  explicit Memory(Arena& arena) : arena_(&arena) {}
  /// Tensors that have a shape and no numbers: what a state would be.
  static Memory shapes_only() {
    Memory memory;
    memory.is_none_ = true;
    return memory;
  }
  bool is_none() const { return is_none_; }

  Storage caches() const { return caches_; }
  Memory with_caches(Storage caches) const {
    Memory memory = *this;
    memory.caches_ = caches;
    return memory;
  }

  /// Whether what lives here ends with the call that made it, so that no later one goes on from it.
  bool ends_with_call() const { return arena_ != nullptr; }
  void* allocate(Index bytes) const {
    if (arena_ != nullptr) return arena_->allocate(bytes);
    return detail::allocate_buffer(bytes);
  }
  /// `bytes`: as they were allocated.
  void free(void* memory, Index bytes) const {
    if (arena_ == nullptr) detail::free_buffer(memory, bytes);
  }

 private:
  Arena* arena_ = nullptr;
  bool is_none_ = false;
  Storage caches_ = Storage::native;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
