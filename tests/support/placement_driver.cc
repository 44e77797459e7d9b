#include "tests/support/placement_driver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

// A caller gives up after as many waits in a row with nothing in flight.
constexpr int kMaxIdleRounds = 3;

// The word that stands for a page of a block; never 0.
uint64_t WordOf(const BlockId& id, size_t page) { return id.low * 1000 + page + 1; }

}  // namespace

PlacementDriver::PlacementDriver(const PlacementOptions& options, Pace pace, uint64_t seed)
    : placement_(*Placement::Create(options)),
      pace_(pace),
      random_(seed),
      pages_(options.block_bytes / kPageBytes) {
  for (size_t i = 0; i < kPoolCount; ++i) slot_words_[i].resize(options.slots[i] * pages_);
  if (options.nvme) device_words_.resize(options.nvme->total_bytes() / kPageBytes);
}

void PlacementDriver::Report(const std::string& problem) {
  if (problem_.empty()) problem_ = problem;
}

absl::Span<uint64_t> PlacementDriver::Words(Place place) {
  return absl::MakeSpan(slot_words_[static_cast<size_t>(place.pool)])
      .subspan(static_cast<size_t>(place.slot) * pages_, pages_);
}

FetchItem PlacementDriver::WholeBlock(const BlockId& id) const {
  FetchItem item;
  item.id = id;
  item.page_count = static_cast<uint32_t>(pages_);
  return item;
}

Pool PlacementDriver::fast_pool() const {
  return placement_->table(Pool::kHbm).size() > 0 ? Pool::kHbm : placement_->put_pool();
}

// --- Transfers ---

void PlacementDriver::BeginPut(const BlockId& id, Place place) {
  const absl::Span<uint64_t> words = Words(place);
  const absl::Span<PageChecksum> checksums = placement_->table(place.pool).checksums(place.slot);
  for (size_t page = 0; page < pages_; ++page) {
    words[page] = WordOf(id, page);
    checksums[page] = static_cast<PageChecksum>(words[page]);
  }
  in_flight_.push_back({.kind = Transfer::Kind::kPut, .place = place});
}

void PlacementDriver::Start() {
  while (const std::optional<size_t> index = placement_->NextGroup()) {
    Transfer transfer = {.kind = Transfer::Kind::kGroup, .group = *index};
    for (const WriteGroup::Block& block : placement_->group(*index).blocks) {
      transfer.written.push_back(block.entry == kNoEntry
                                     ? std::nullopt
                                     : std::optional(placement_->directory()[block.entry].id));
    }
    in_flight_.push_back(transfer);
  }
  while (const std::optional<UpkeepTask> task = placement_->NextUpkeep()) {
    in_flight_.push_back({.kind = Transfer::Kind::kUpkeep, .task = *task});
  }
  while (const std::optional<Place> place = placement_->NextRewriteRead()) {
    in_flight_.push_back({.kind = Transfer::Kind::kRead, .place = *place});
  }
  const bool may_bounce = placement_->table(Pool::kHbm).size() > 0;
  while (!may_bounce || placement_->table(Pool::kTransit).free_count() > 0) {
    const std::optional<Place> place = placement_->NextRead(/*allow_prefetch=*/true);
    if (!place) break;
    Transfer transfer = {.kind = Transfer::Kind::kRead, .place = *place};
    if (place->pool == Pool::kHbm) transfer.bounce = placement_->TakeBounce();
    in_flight_.push_back(transfer);
  }
  while (const std::optional<Place> place = placement_->NextCopy()) {
    in_flight_.push_back({.kind = Transfer::Kind::kCopy, .place = *place});
  }
}

void PlacementDriver::MoveWords(const Transfer& transfer) {
  const Fill& fill = placement_->table(transfer.place.pool).fill(transfer.place.slot);
  const absl::Span<uint64_t> target = Words(transfer.place);
  if (transfer.kind == Transfer::Kind::kCopy) {
    const absl::Span<uint64_t> source = Words(fill.slot);
    std::copy(source.begin(), source.end(), target.begin());
    return;
  }
  const absl::Span<PageChecksum> expected =
      placement_->nvme()->checksums(fill.page, fill.page_count);
  for (uint32_t i = 0; i < fill.page_count; ++i) {
    const uint64_t word = device_words_[static_cast<size_t>(fill.page) + i];
    if (static_cast<PageChecksum>(word) != expected[i]) Report("a read found foreign bytes");
    target[fill.first_page + i] = word;
  }
}

void PlacementDriver::WriteWords(const Transfer& transfer) {
  const WriteGroup& group = placement_->group(transfer.group);
  const NvmeGeometry& geometry = placement_->nvme()->geometry();
  size_t page = static_cast<size_t>(group.base);
  const size_t end = page + geometry.header_pages + group.blocks.size() * pages_;
  std::fill(device_words_.begin() + page, device_words_.begin() + end, 0);
  page += geometry.header_pages;
  for (size_t i = 0; i < group.blocks.size(); ++i, page += pages_) {
    const absl::Span<uint64_t> source = Words(group.blocks[i].source);
    std::copy(source.begin(), source.end(), device_words_.begin() + page);
    if (transfer.written[i] && source[0] != WordOf(*transfer.written[i], 0)) {
      Report("a source of a write was given away before the write ended");
    }
  }
}

PlacementDriver::Transfer PlacementDriver::TakeOut(size_t index) {
  Transfer transfer = std::move(in_flight_[index]);
  in_flight_.erase(in_flight_.begin() + index);
  if (transfer.bounce) placement_->ReturnBounce(*transfer.bounce);
  return transfer;
}

void PlacementDriver::Finish(size_t index) {
  const Transfer transfer = TakeOut(index);
  switch (transfer.kind) {
    case Transfer::Kind::kRead:
    case Transfer::Kind::kCopy:
      MoveWords(transfer);
      [[fallthrough]];
    case Transfer::Kind::kPut:
      placement_->FillLanded(transfer.place);
      break;
    case Transfer::Kind::kGroup:
      WriteWords(transfer);
      placement_->GroupWritten(transfer.group, true);
      break;
    case Transfer::Kind::kUpkeep:
      placement_->UpkeepDone(transfer.task);
      break;
  }
}

void PlacementDriver::Fail(size_t index) {
  const Transfer transfer = TakeOut(index);
  if (transfer.kind == Transfer::Kind::kGroup) {
    placement_->StopNvmeWrites();
    placement_->GroupWritten(transfer.group, false);
  } else if (transfer.kind == Transfer::Kind::kUpkeep) {
    placement_->StopNvmeWrites();
  } else {
    placement_->FillFailed(transfer.place, transfer.kind == Transfer::Kind::kRead);
  }
}

void PlacementDriver::Settle() {
  for (Start(); !in_flight_.empty(); Start()) FinishAny();
}

// --- A caller that waits ---

bool PlacementDriver::AwaitRoom(int& idle_rounds) {
  Start();
  if (in_flight_.empty()) {
    if (placement_->transfers_in_flight()) Report("something is in flight that cannot be started");
    return ++idle_rounds <= kMaxIdleRounds;
  }
  idle_rounds = 0;
  FinishAny();
  if (pace_ == Pace::kAtOnce) Settle();
  return true;
}

Placement::PutOutcome PlacementDriver::Put(const BlockId& id, Retention retention) {
  for (int idle_rounds = 0;;) {
    const Placement::PutReservation put = placement_->ReservePut(id, retention);
    if (put.outcome == Placement::PutOutcome::kWait) {
      if (AwaitRoom(idle_rounds)) continue;
      Report("a put waits for nothing");
      return Placement::PutOutcome::kFull;
    }
    if (put.outcome == Placement::PutOutcome::kReserved) {
      BeginPut(id, put.place);
      Finish(in_flight_.size() - 1);
    }
    if (pace_ == Pace::kAtOnce) Settle();
    return put.outcome;
  }
}

bool PlacementDriver::Landed(const FetchItem& item) const {
  if (item.place.slot == kNoSlot) return true;
  return placement_->table(item.place.pool).state(item.place.slot) != CopyState::kFilling;
}

bool PlacementDriver::AwaitLanding(const FetchItem& item) {
  while (!Landed(item)) {
    Start();
    if (in_flight_.empty()) {
      Report("a fetch waits for nothing");
      return false;
    }
    const auto own = std::find_if(in_flight_.begin(), in_flight_.end(), [&](const Transfer& t) {
      const bool fill = t.kind != Transfer::Kind::kGroup && t.kind != Transfer::Kind::kUpkeep;
      return fill && t.place == item.place;
    });
    own == in_flight_.end() ? FinishAny() : Finish(own - in_flight_.begin());
  }
  return true;
}

void PlacementDriver::CheckWords(const FetchItem& item) {
  const absl::Span<uint64_t> words = Words(item.place);
  const absl::Span<PageChecksum> checksums =
      placement_->table(item.place.pool).checksums(item.place.slot);
  for (size_t page = item.first_page; page < item.first_page + item.page_count; ++page) {
    if (words[page] != WordOf(item.id, page)) {
      Report(absl::StrCat("block ", item.id.low, " was served with wrong bytes"));
    }
    if (placement_->nvme() != nullptr &&
        checksums[page] != static_cast<PageChecksum>(words[page])) {
      Report(absl::StrCat("block ", item.id.low, " lost its checksums"));
    }
  }
}

Room PlacementDriver::Fetch(std::vector<FetchItem>& items, Pool target) {
  for (int idle_rounds = 0;;) {
    const Room room = placement_->ReserveFetch(absl::MakeSpan(items), target);
    if (room == Room::kOk) break;
    if (room == Room::kWait && AwaitRoom(idle_rounds)) continue;
    if (room == Room::kWait) Report("a fetch waits for room that nothing will make");
    return Room::kFull;
  }
  for (const FetchItem& item : items) {
    if (!AwaitLanding(item)) return Room::kFull;
  }
  for (const FetchItem& item : items) {
    if (item.place.slot == kNoSlot) continue;
    if (placement_->table(item.place.pool).state(item.place.slot) == CopyState::kResident) {
      CheckWords(item);
    }
    placement_->Unpin(item.place);
  }
  if (pace_ == Pace::kAtOnce) Settle();
  return Room::kOk;
}

bool PlacementDriver::Flush() {
  Placement::FlushCursor cursor = placement_->BeginFlush();
  for (int idle_rounds = 0;;) {
    const Room room = placement_->SelectDirty(cursor);
    if (room == Room::kOk) break;
    if (room == Room::kWait && AwaitRoom(idle_rounds)) continue;
    if (room == Room::kWait) Report("a flush waits for nothing");
    return false;
  }
  const uint64_t generation = placement_->last_generation();
  while (!placement_->WrittenUpTo(generation)) {
    Start();
    if (in_flight_.empty()) {
      Report("a flush waits for a write that cannot be started");
      return false;
    }
    FinishAny();
  }
  if (pace_ == Pace::kAtOnce) Settle();
  return true;
}

}  // namespace terrace
