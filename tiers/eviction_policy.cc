#include "tiers/eviction_policy.h"

#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

// Least recently used: a circular doubly linked list threaded through one array, whose last node is
// the sentinel. sentinel.next is the coldest slot, sentinel.previous the warmest.
class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(size_t slots) : nodes_(slots + 1), sentinel_(static_cast<uint32_t>(slots)) {
    nodes_[sentinel_] = {sentinel_, sentinel_};
  }

  void Insert(SlotIndex slot, const BlockId&) override {
    TERRACE_CHECK(!Tracked(slot));
    LinkBefore(sentinel_, static_cast<uint32_t>(slot));
  }
  void Touch(SlotIndex slot) override {
    Remove(slot);
    LinkBefore(sentinel_, static_cast<uint32_t>(slot));
  }
  void MakeColdest(SlotIndex slot) override {
    Remove(slot);
    LinkBefore(nodes_[sentinel_].next, static_cast<uint32_t>(slot));
  }
  void Remove(SlotIndex slot) override {
    TERRACE_CHECK(Tracked(slot));
    Node& node = nodes_[static_cast<uint32_t>(slot)];
    nodes_[node.previous].next = node.next;
    nodes_[node.next].previous = node.previous;
    node = Node();
  }
  void VisitColdest(absl::FunctionRef<bool(SlotIndex)> visit) const override {
    for (uint32_t slot = nodes_[sentinel_].next; slot != sentinel_; slot = nodes_[slot].next) {
      if (!visit(SlotIndex{slot})) return;
    }
  }

 private:
  static constexpr uint32_t kUnlinked = UINT32_MAX;
  struct Node {
    uint32_t previous = kUnlinked;
    uint32_t next = kUnlinked;
  };

  bool Tracked(SlotIndex slot) const {
    return nodes_[static_cast<uint32_t>(slot)].next != kUnlinked;
  }
  void LinkBefore(uint32_t successor, uint32_t slot) {
    const uint32_t predecessor = nodes_[successor].previous;
    nodes_[slot] = {predecessor, successor};
    nodes_[predecessor].next = slot;
    nodes_[successor].previous = slot;
  }

  std::vector<Node> nodes_;
  const uint32_t sentinel_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   size_t slots) {
  if (name == "lru") return std::make_unique<LruPolicy>(slots);
  return absl::InvalidArgumentError(
      absl::StrCat("unknown eviction policy \"", name, "\"; known: lru"));
}

}  // namespace terrace
