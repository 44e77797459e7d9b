#include "runtime/weight_rows.h"

#include "io/check.h"

namespace terrace {

WeightRows::WeightRows(uint32_t rows, uint32_t capacity) : slot_of_(rows, kNone), slots_(capacity) {
  TERRACE_CHECK(rows < kNone && capacity <= rows);
}

uint64_t WeightRows::MemoryBytes(uint64_t rows, uint64_t capacity) {
  return rows * sizeof(uint32_t) + capacity * sizeof(Slot);
}

void WeightRows::Touch(uint32_t slot, uint64_t use, uint64_t token) {
  Slot& touched = slots_[slot];
  touched.use = use;
  touched.token = token;
  if (touched.held) return;
  Unlink(slot);
  LinkNewest(slot);
}

WeightRows::Inserted WeightRows::Insert(uint32_t row, uint64_t use, uint64_t token,
                                        uint64_t expired) {
  TERRACE_CHECK_EQ(slot_of_[row], kNone);
  Inserted inserted;
  const bool may_evict = oldest_ != kNone && slots_[oldest_].use != use;
  const bool must_evict = used_ == capacity();
  if (may_evict && (must_evict || slots_[oldest_].token < expired)) {
    inserted.slot = oldest_;
    inserted.evicted_row = slots_[oldest_].row;
    slot_of_[inserted.evicted_row] = kNone;
    Unlink(inserted.slot);
  } else if (must_evict) {
    return inserted;
  } else {
    inserted.slot = used_++;
  }
  slot_of_[row] = inserted.slot;
  slots_[inserted.slot] = {
      .use = use, .token = token, .row = row, .older = kNone, .newer = kNone, .held = true};
  return inserted;
}

void WeightRows::Release(uint32_t slot) {
  TERRACE_CHECK(slots_[slot].held);
  slots_[slot].held = false;
  LinkNewest(slot);
}

void WeightRows::ReleaseAsOldest(uint32_t slot) {
  TERRACE_CHECK(slots_[slot].held);
  slots_[slot].held = false;
  LinkOldest(slot);
}

void WeightRows::Hold(uint32_t slot) {
  TERRACE_CHECK(!slots_[slot].held);
  Unlink(slot);
  slots_[slot].held = true;
}

std::optional<uint32_t> WeightRows::Oldest() const {
  if (oldest_ == kNone) return std::nullopt;
  return oldest_;
}

WeightRows::Move WeightRows::Erase(uint32_t slot) {
  TERRACE_CHECK(!slots_[slot].held && !last_is_held());
  Unlink(slot);
  slot_of_[slots_[slot].row] = kNone;
  const uint32_t last = --used_;
  if (slot == last) return {};
  slots_[slot] = slots_[last];
  slot_of_[slots_[slot].row] = slot;
  // The neighbours in the window know the row by its slot.
  const Slot& moved = slots_[slot];
  (moved.older == kNone ? oldest_ : slots_[moved.older].newer) = slot;
  (moved.newer == kNone ? newest_ : slots_[moved.newer].older) = slot;
  return {.from = last, .to = slot};
}

void WeightRows::Unlink(uint32_t slot) {
  Slot& out = slots_[slot];
  (out.older == kNone ? oldest_ : slots_[out.older].newer) = out.newer;
  (out.newer == kNone ? newest_ : slots_[out.newer].older) = out.older;
  out.older = out.newer = kNone;
}

void WeightRows::LinkNewest(uint32_t slot) {
  Slot& in = slots_[slot];
  in.older = newest_;
  in.newer = kNone;
  (newest_ == kNone ? oldest_ : slots_[newest_].newer) = slot;
  newest_ = slot;
}

void WeightRows::LinkOldest(uint32_t slot) {
  Slot& in = slots_[slot];
  in.newer = oldest_;
  in.older = kNone;
  (oldest_ == kNone ? newest_ : slots_[oldest_].older) = slot;
  oldest_ = slot;
}

}  // namespace terrace
