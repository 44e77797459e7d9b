// TierManager: reads from NVMe, from the queue of fills to bytes that were verified.

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

// A disk that fails so many reads in a row is given up: each of them may have taken its time.
constexpr uint64_t kMaxReadFailures = 64;

// Verified blocks that are sent on to HBM together.
constexpr size_t kCopyPiece = 4;

}  // namespace

void TierManager::CollectReads(FlightBatch& demand, FlightBatch& prefetch, FlightBatch& rewrite) {
  // They have their slots already, and may be what others wait for.
  while (!idle_flights_.empty()) {
    const std::optional<Place> place = placement_->NextRewriteRead();
    if (!place) break;
    StartFlight(*place, rewrite);
  }
  const bool may_bounce = options_.hbm_bytes > 0;
  while (!idle_flights_.empty()) {
    if (may_bounce && placement_->table(Pool::kTransit).free_count() == 0) break;
    const std::optional<Place> place =
        placement_->NextRead(/*allow_prefetch=*/prefetch_flights_ < flights_.size() / 2);
    if (!place) break;
    const bool hinted = placement_->table(place->pool).fill(place->slot).prefetch;
    if (hinted) ++prefetch_flights_;
    StartFlight(*place, hinted ? prefetch : demand);
  }
  coalescer_->Coalesce(demand);
  coalescer_->Coalesce(prefetch);
  coalescer_->Coalesce(rewrite);
  for (const size_t index : split_flights_) {
    Flight& flight = flights_[index];
    coalescer_->PrepareAlone(flight);
    (flight.prefetch ? prefetch : demand).push_back(&flight);
  }
  split_flights_.clear();
}

void TierManager::StartFlight(Place place, FlightBatch& batch) {
  Flight& flight = flights_[idle_flights_.back()];
  idle_flights_.pop_back();
  PrepareFlight(flight, place);
  batch.push_back(&flight);
}

void TierManager::PrepareFlight(Flight& flight, Place target) {
  const Fill& fill = placement_->table(target.pool).fill(target.slot);
  flight.target = target;
  flight.bounce = target.pool == Pool::kHbm ? placement_->TakeBounce() : std::nullopt;
  flight.checksums = placement_->nvme()->checksums(fill.page, fill.page_count);
  flight.prefetch = fill.prefetch;
  flight.retried = false;
  flight.error = 0;
  flight.verified = false;
  flight.in_target = false;
  flight.offset = static_cast<uint64_t>(fill.page) * kPageBytes;
  // Read when the bytes have come, long after this.
  __builtin_prefetch(&flight.checksums.front());
  __builtin_prefetch(&flight.checksums.back());
  flight.bytes = {
      memory_->Address(flight.bounce.value_or(target)) + size_t{fill.first_page} * kPageBytes,
      size_t{fill.page_count} * kPageBytes};
  PrepareToOpen(flight, fill);
}

void TierManager::EndRead(Flight& first) {
  const bool shared = first.next != nullptr;
  const int error = first.request.error;
  if (error != 0) ++faults_.failed_reads;
  if (!shared && error != 0) {
    if (ReadAgain(first)) return;
    if (nvme_read_error_.ok()) nvme_read_error_ = device_->StatusOf(first.request);
  }
  std::vector<size_t>& ended = shared && error != 0 ? split_flights_ : arrived_flights_;
  for (Flight* flight = &first; flight != nullptr; flight = flight->next) {
    flight->error = error;
    ended.push_back(flight->index);
  }
}

// A second try alone: what failed may have been on the way.
bool TierManager::ReadAgain(Flight& flight) {
  if (flight.retried) return false;
  flight.retried = true;
  flight.next = nullptr;
  split_flights_.push_back(flight.index);
  return true;
}

void TierManager::CountRead(const Flight& flight) {
  if (flight.verified) {
    reads_failed_in_a_row_ = 0;
    if (flight.retried) ++faults_.mended_reads;
    return;
  }
  if (flight.error != 0 && ++reads_failed_in_a_row_ >= kMaxReadFailures && !nvme_abandoned_) {
    nvme_abandoned_ = true;
    StopNvmeWrites(nvme_read_error_);
    placement_->AbandonNvme();
  }
}

bool TierManager::FinishArrived() {
  if (arrived_flights_.empty()) return false;
  absl::InlinedVector<size_t, kWorkBatch> taken;
  absl::InlinedVector<Flight*, kWorkBatch> flights;
  const size_t count = std::min(arrived_flights_.size(), kWorkBatch);
  for (size_t i = 0; i < count; ++i) {
    taken.push_back(arrived_flights_[i]);
    flights.push_back(&flights_[arrived_flights_[i]]);
  }
  arrived_flights_.erase(arrived_flights_.begin(), arrived_flights_.begin() + count);
  mu_.Unlock();
  VerifyAndCopyUp(flights);
  mu_.Lock();
  for (size_t index : taken) {
    Flight& flight = flights_[index];
    if (!flight.verified && flight.error == 0) {
      ++(flight.unopened ? faults_.unopened_blocks : faults_.corrupt_reads);
      if (ReadAgain(flight)) continue;
    }
    CountRead(flight);
    if (flight.bounce) placement_->ReturnBounce(*flight.bounce);
    if (flight.in_target) {
      if (flight.bounce) hbm_copied_bytes_ += flight.bytes.iov_len;
      placement_->FillLanded(flight.target);
    } else {
      placement_->FillFailed(flight.target, /*source_lost=*/!flight.verified);
    }
    if (flight.prefetch) --prefetch_flights_;
    flight.prefetch = false;
    flight.cipher.reset();
    idle_flights_.push_back(index);
  }
  return true;
}

// Whether the bytes are those that were put; decrypts them where they arrived.
bool TierManager::Verify(Flight& flight) const {
  if (flight.error != 0) return false;
  const absl::Span<const std::byte> bytes(static_cast<std::byte*>(flight.bytes.iov_base),
                                          flight.bytes.iov_len);
  if (checksums_ && FirstCorruptPage(bytes, flight.checksums) < flight.checksums.size()) {
    return false;
  }
  flight.unopened = flight.sealed && !OpenBlock(flight);
  return !flight.unopened;
}

// Blocks for HBM are on their way while the next are verified.
void TierManager::VerifyAndCopyUp(absl::Span<Flight* const> flights) {
  const TimelineSpan span(timeline(), "verify", {"blocks", flights.size()});
  CopyEngine& engine = memory_->copy_engine();
  absl::InlinedVector<Copy, kCopyPiece> copies;
  absl::InlinedVector<CopyTicket, kWorkBatch> tickets;
  bool copied = true;
  size_t submitted = 0;
  size_t submitted_bytes = 0;
  int64_t begin = 0;
  const auto submit = [&] {
    if (copies.empty()) return;
    if (submitted == 0) begin = Timeline::Now();
    submitted += copies.size();
    for (const Copy& copy : copies) submitted_bytes += copy.bytes;
    const absl::StatusOr<CopyTicket> ticket = engine.Submit(copies);
    if (ticket.ok()) tickets.push_back(*ticket);
    copied = copied && ticket.ok();
    copies.clear();
  };
  for (Flight* flight : flights) {
    const absl::Span<const std::byte> bytes(static_cast<std::byte*>(flight->bytes.iov_base),
                                            flight->bytes.iov_len);
    flight->verified = Verify(*flight);
    flight->in_target = flight->verified;
    if (!flight->verified || !flight->bounce) continue;
    copies.push_back({.source = bytes.data(),
                      .destination = memory_->Address(flight->target),
                      .bytes = bytes.size(),
                      .direction = CopyDirection::kHostToDevice});
    if (copies.size() == kCopyPiece) submit();
  }
  submit();
  for (const CopyTicket ticket : tickets) copied = engine.Wait(ticket).ok() && copied;
  memory_->RecordCopies(CopyDirection::kHostToDevice, submitted, submitted_bytes, begin);
  if (copied) return;
  for (Flight* flight : flights) {
    if (flight->bounce) flight->in_target = false;
  }
}

void TierManager::RaisePrefetches(absl::Span<const FetchItem> items) {
  for (const FetchItem& item : items) {
    if (!item.was_prefetching) continue;
    for (Flight& flight : flights_) {
      if (!flight.prefetch || flight.target != item.place) continue;
      // The request of another flight may carry it, and is the same for the device either way.
      scheduler_->Raise(&flights_[flight.first->index].request, IoClass::kDemand);
    }
  }
}

}  // namespace terrace
