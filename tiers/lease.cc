#include "tiers/lease.h"

#include "absl/time/clock.h"
#include "io/check.h"
#include "tiers/tier_manager.h"

namespace terrace {

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  manager_ = std::exchange(other.manager_, nullptr);
  blocks_ = std::move(other.blocks_);
  places_ = std::move(other.places_);
  other.blocks_.clear();
  other.places_.clear();
  return *this;
}

void Lease::Release() {
  if (manager_ == nullptr) return;
  manager_->Unpin(places_);
  manager_->spare_blocks_.Give(std::move(blocks_));
  manager_->spare_places_.Give(std::move(places_));
  manager_ = nullptr;
  blocks_.clear();
  places_.clear();
}

Ticket& Ticket::operator=(Ticket&& other) noexcept {
  if (this == &other) return *this;
  Cancel();
  manager_ = std::exchange(other.manager_, nullptr);
  items_ = std::move(other.items_);
  deadline_ = other.deadline_;
  other.items_.clear();
  return *this;
}

bool Ticket::Done() const {
  if (manager_ == nullptr) return true;
  absl::MutexLock lock(&manager_->mu_);
  return manager_->AllLanded(items_) || absl::Now() >= deadline_;
}

Lease Ticket::Wait() {
  TERRACE_CHECK(manager_ != nullptr);
  TierManager* manager = std::exchange(manager_, nullptr);
  FetchItems items = std::move(items_);
  Lease lease = manager->WaitFor(items, deadline_);
  manager->spare_items_.Give(std::move(items));
  return lease;
}

void Ticket::Cancel() {
  if (manager_ == nullptr) return;
  std::vector<Place> places;
  for (const FetchItem& item : items_) {
    if (item.place.slot != kNoSlot) places.push_back(item.place);
  }
  std::exchange(manager_, nullptr)->Unpin(places);
  items_.clear();
}

}  // namespace terrace
