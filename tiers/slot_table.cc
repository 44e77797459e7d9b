#include "tiers/slot_table.h"

#include <utility>

#include "io/check.h"

namespace terrace {

SlotTable::SlotTable(size_t slots, size_t pages_per_slot, std::unique_ptr<EvictionPolicy> policy)
    : pages_per_slot_(pages_per_slot),
      policy_(std::move(policy)),
      slots_(slots),
      checksums_(slots * pages_per_slot) {
  free_.reserve(slots);
  for (size_t i = slots; i > 0; --i) free_.push_back(SlotIndex{static_cast<uint32_t>(i - 1)});
}

void SlotTable::Recount(const Slot& slot, bool was_falling) {
  falling_ -= was_falling ? 1 : 0;
  falling_ += Falling(slot) ? 1 : 0;
}

SlotIndex SlotTable::Reserve(EntryIndex entry) {
  TERRACE_CHECK(!free_.empty());
  const SlotIndex index = free_.back();
  free_.pop_back();
  Slot& slot = At(index);
  Transition(slot.state, CopyState::kFilling);
  slot.entry = entry;
  slot.fill = Fill();
  Recount(slot, false);
  return index;
}

void SlotTable::Lend(SlotIndex index) {
  Slot& slot = At(index);
  const bool was_falling = Falling(slot);
  ++slot.leases;
  if (!slot.lent) ++lent_;
  slot.lent = true;
  Recount(slot, was_falling);
}

void SlotTable::TakeBack(SlotIndex index) {
  Slot& slot = At(index);
  TERRACE_CHECK(slot.leases > 0);
  const bool was_falling = Falling(slot);
  --slot.leases;
  EndLoan(slot);
  Recount(slot, was_falling);
}

void SlotTable::EndLoan(Slot& slot) {
  if (!slot.lent || slot.leases > 0 || slot.state == CopyState::kFilling) return;
  slot.lent = false;
  --lent_;
}

void SlotTable::Land(SlotIndex index) {
  Slot& slot = At(index);
  const bool was_falling = Falling(slot);
  Transition(slot.state, CopyState::kResident);
  EndLoan(slot);
  if (slot.entry == kNoEntry && slot.pins == 0) Free(index);
  Recount(slot, was_falling);
}

void SlotTable::Fail(SlotIndex index) {
  Slot& slot = At(index);
  const bool was_falling = Falling(slot);
  if (slot.tracked) Untrack(index);
  slot.entry = kNoEntry;
  if (slot.pins > 0) {
    Transition(slot.state, CopyState::kFailed);
  } else {
    Free(index);
  }
  EndLoan(slot);
  Recount(slot, was_falling);
}

void SlotTable::Pin(SlotIndex index) {
  if (At(index).pins++ == 0) ++pinned_;
}

void SlotTable::Unpin(SlotIndex index) {
  Slot& slot = At(index);
  TERRACE_CHECK(slot.pins > 0);
  if (--slot.pins > 0) return;
  --pinned_;
  const bool was_falling = Falling(slot);
  if (slot.entry == kNoEntry && slot.state != CopyState::kFilling) Free(index);
  Recount(slot, was_falling);
}

void SlotTable::Detach(SlotIndex index) {
  Slot& slot = At(index);
  const bool was_falling = Falling(slot);
  if (slot.tracked) Untrack(index);
  slot.entry = kNoEntry;
  if (slot.pins == 0 && slot.state != CopyState::kFilling) Free(index);
  Recount(slot, was_falling);
}

void SlotTable::Free(SlotIndex index) {
  Slot& slot = At(index);
  TERRACE_CHECK(slot.pins == 0 && slot.leases == 0 && slot.entry == kNoEntry);
  Transition(slot.state, CopyState::kEmpty);
  free_.push_back(index);
}

void SlotTable::Track(SlotIndex index, const BlockId& id) {
  Slot& slot = At(index);
  TERRACE_CHECK(!slot.tracked);
  slot.tracked = true;
  policy_->Insert(index, id);
}

void SlotTable::Untrack(SlotIndex index) {
  Slot& slot = At(index);
  TERRACE_CHECK(slot.tracked);
  slot.tracked = false;
  policy_->Remove(index);
}

void SlotTable::Touch(SlotIndex index) {
  if (At(index).tracked) policy_->Touch(index);
}

void SlotTable::MakeColdest(SlotIndex index) {
  if (At(index).tracked) policy_->MakeColdest(index);
}

size_t SlotTable::memory_bytes() const {
  return slots_.capacity() * sizeof(Slot) + free_.capacity() * sizeof(SlotIndex) +
         checksums_.capacity() * sizeof(PageChecksum);
}

}  // namespace terrace
