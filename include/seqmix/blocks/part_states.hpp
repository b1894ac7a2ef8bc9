#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "seqmix/layers/any_mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Allocates where a `Memory` says; copies are on the heap.
template <class T>
struct MemoryAllocator {
  using value_type = T;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;
  using is_always_equal = std::false_type;

  Memory memory;

  MemoryAllocator() = default;
  explicit MemoryAllocator(Memory in) : memory(in) {}
  template <class Other>
  MemoryAllocator(const MemoryAllocator<Other>& other) : memory(other.memory) {}

  T* allocate(std::size_t count) {
    return static_cast<T*>(memory.allocate(static_cast<Index>(count * sizeof(T))));
  }
  void deallocate(T* numbers, std::size_t count) {
    memory.free(numbers, static_cast<Index>(count * sizeof(T)));
  }
  MemoryAllocator select_on_container_copy_construction() const { return {}; }
  bool operator==(const MemoryAllocator& other) const {
    return !memory.ends_with_call() && !other.memory.ends_with_call();
  }
};

}  // namespace detail

/// The names of the parts of a block, each once.
using PartNames = std::vector<std::string>;

/// The states of the parts of a block, one for each. Their members are called by the part's name
/// and their own: "mixer.keys".
class PartStates {
 public:
  PartStates() = default;
  /// Room for the states of all parts.
  PartStates(std::shared_ptr<const PartNames> names, Memory memory)
      : names_(std::move(names)), states_(detail::MemoryAllocator<AnyState>(memory)) {
    states_.reserve(names_->size());
  }
  void add(AnyState state) { states_.push_back(std::move(state)); }

  std::size_t size() const { return states_.size(); }
  AnyState& operator[](std::size_t part) { return states_[part]; }
  const AnyState& operator[](std::size_t part) const { return states_[part]; }

  /// That of the block.
  const void* origin() const { return names_.get(); }
  static void visit(auto& self, auto&& member) {
    for (std::size_t i = 0; i < self.states_.size(); ++i) {
      const Name part((*self.names_)[i]);
      self.states_[i].members().for_each([&](const Name& name, const StateMember& described) {
        member(name.within(part), described);
      });
    }
  }

 private:
  std::shared_ptr<const PartNames> names_;
  std::vector<AnyState, detail::MemoryAllocator<AnyState>> states_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
