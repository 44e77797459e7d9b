#include "tiers/block_directory.h"

#include "io/check.h"

namespace terrace {

BlockDirectory::BlockDirectory(size_t max_blocks)
    : entries_(max_blocks), index_(0, Hash{&entries_}, Equal{&entries_}) {
  index_.reserve(max_blocks);
  free_.reserve(max_blocks);
  for (size_t i = max_blocks; i > 0; --i) free_.push_back(EntryIndex{static_cast<uint32_t>(i - 1)});
}

EntryIndex BlockDirectory::Find(const BlockId& id) const {
  const auto found = index_.find(id);
  return found == index_.end() ? kNoEntry : *found;
}

EntryIndex BlockDirectory::Insert(const BlockId& id) {
  TERRACE_CHECK(!free_.empty());
  const EntryIndex entry = free_.back();
  free_.pop_back();
  (*this)[entry] = BlockEntry{.id = id};
  const bool inserted = index_.insert(entry).second;
  TERRACE_CHECK(inserted);
  return entry;
}

void BlockDirectory::Erase(EntryIndex entry) {
  TERRACE_CHECK(!(*this)[entry].in_memory());
  TERRACE_CHECK((*this)[entry].nvme == CopyState::kEmpty);
  const size_t erased = index_.erase(entry);
  TERRACE_CHECK(erased == 1);
  free_.push_back(entry);
  ++erased_count_;
}

size_t BlockDirectory::memory_bytes() const {
  return entries_.capacity() * sizeof(BlockEntry) + free_.capacity() * sizeof(EntryIndex) +
         index_.capacity() * (sizeof(EntryIndex) + 1);
}

}  // namespace terrace
