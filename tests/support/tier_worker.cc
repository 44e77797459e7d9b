#include "tests/support/tier_worker.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"

namespace terrace {
namespace {

using Change = PromiseModel::Change;

constexpr uint64_t kMostRead = 3;  // blocks of one fetch
constexpr size_t kMostLeases = 2;  // held over other calls

bool NoRoom(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
}

}  // namespace

std::optional<uint64_t> VersionOf(uint64_t number, absl::Span<const std::byte> bytes, size_t offset,
                                  uint64_t newest) {
  for (uint64_t version = newest + 1; version-- > 0;) {
    const std::vector<std::byte> wanted =
        BlockBytes(TestId(number), offset + sizeof(uint64_t), version);
    if (std::memcmp(wanted.data() + offset, bytes.data(), sizeof(uint64_t)) != 0) continue;
    const std::vector<std::byte> all = BlockBytes(TestId(number), offset + bytes.size(), version);
    if (std::memcmp(all.data() + offset, bytes.data(), bytes.size()) == 0) return version;
  }
  return std::nullopt;
}

TierWorker::TierWorker(const TierWorkerOptions& options)
    : options_(options),
      manager_(*options.manager),
      model_(*options.model),
      own_count_((model_.block_count() - options.first + options.stride - 1) / options.stride),
      random_(options.seed) {}

void TierWorker::Step() {
  if (Chance(options_.flush_share)) return Flush();
  if (Chance(options_.drop_share)) return Drop();
  switch (Draw(20)) {
    case 0:
      return options_.drops ? Drop() : Put();
    case 1:
    case 2:
      return SetRetention();
    case 3:
      return Prefetch();
    case 4:
    case 5:
      return FetchAsync();
    case 6:
      // Fails where there is no power, which is as good.
      static_cast<void>(manager_.DiscardFree());
      return;
    case 7:
    case 8:
    case 9:
    case 10:
    case 11:
      return Fetch();
    default:
      return Put();
  }
}

std::optional<Tier> TierWorker::Target() {
  if (options_.targets.empty() || Draw(2) == 0) return std::nullopt;
  return options_.targets[Draw(options_.targets.size())];
}

BlockRead TierWorker::Read(uint64_t number) {
  BlockRead read = {.id = TestId(number)};
  const uint64_t pages = manager_.block_bytes() / kPageBytes;
  if (pages == 1 || Draw(4) != 0) return read;
  read.offset = static_cast<uint32_t>(Draw(pages) * kPageBytes);
  read.bytes = kPageBytes;
  return read;
}

void TierWorker::Put() {
  const uint64_t number = Own();
  const bool owned = Chance(options_.owned_share);
  const Change change = owned ? Change::kPutOwned : Change::kPut;
  const bool must_be_here = model_.must_be_here(number);
  const std::vector<std::byte> bytes =
      BlockBytes(TestId(number), manager_.block_bytes(), model_.version(number));
  BlockWrite write = {.id = TestId(number), .bytes = bytes};
  if (owned) write.retention = Retention::kOwned;
  if (number % 3 == 0) write.space = options_.space;
  model_.Begin(number, change, options_.disk_is_well());
  const absl::Status status = manager_.Put({&write, 1});
  model_.End(number, change, status.ok());
  EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  if (must_be_here && options_.disk_is_well()) {
    EXPECT_TRUE(status.ok()) << "block " << number << " was there, and owned: " << status;
  }
}

void TierWorker::Drop() {
  const uint64_t number = Own();
  const BlockId id = TestId(number);
  model_.Begin(number, Change::kDrop, options_.disk_is_well());
  manager_.Drop({&id, 1});
  model_.End(number, Change::kDrop, /*present=*/false);
  EXPECT_FALSE(manager_.Find(id).has_value()) << "block " << number << " was just dropped";
}

void TierWorker::SetRetention() {
  const uint64_t number = Own();
  const BlockId id = TestId(number);
  const bool owned = Draw(4) == 0;
  const Change change = owned ? Change::kOwn : Change::kDisown;
  model_.Begin(number, change, options_.disk_is_well());
  manager_.SetRetention({&id, 1}, owned ? Retention::kOwned : Retention::kCached);
  // What was there to be owned stays.
  model_.End(number, change, manager_.Find(id).has_value());
}

void TierWorker::Flush() {
  const PromiseModel::FlushStart start = model_.BeginFlush();
  const uint64_t before = manager_.Stats().placement.evicted_segments;
  const absl::Status status = manager_.Flush();
  if (!status.ok()) {
    EXPECT_TRUE(absl::IsResourceExhausted(status) || !options_.disk_is_well()) << status;
    return;
  }
  // What another thread had evicted during the flush may be there again, and not be flushed.
  const bool alone = options_.stride == 1;
  const uint64_t after = manager_.Stats().placement.evicted_segments;
  model_.EndFlush(start, alone ? after : before,
                  [this](uint64_t number) { return manager_.OnNvme(TestId(number)); });
}

void TierWorker::Check(const LeasedBlock& block, uint64_t number, const BlockRead& read,
                       bool must_be_here) {
  if (block.outcome == BlockOutcome::kServed) {
    std::vector<std::byte> bytes(block.bytes);
    ASSERT_TRUE(manager_.CopyToHost(block, absl::MakeSpan(bytes)).ok());
    const bool own = number % options_.stride == options_.first;
    const uint64_t newest = model_.newest_version(number);
    const std::optional<uint64_t> version = VersionOf(number, bytes, read.offset, newest);
    EXPECT_TRUE(version.has_value()) << "block " << number << " has bytes of no version";
    if (version && own) {
      EXPECT_EQ(*version, model_.version(number)) << "block " << number;
    }
    return;
  }
  if (!options_.disk_is_well()) return;
  EXPECT_EQ(block.outcome, BlockOutcome::kMiss) << "block " << number;
  EXPECT_FALSE(must_be_here) << "block " << number << " is owned";
}

void TierWorker::Fetch() {
  std::vector<uint64_t> numbers;
  std::vector<BlockRead> reads;
  std::vector<bool> must_be_here;
  for (uint64_t count = 1 + Draw(kMostRead); count > 0; --count) {
    numbers.push_back(Draw(8) == 0 ? Draw(model_.block_count()) : Own());
    reads.push_back(Read(numbers.back()));
    const bool own = numbers.back() % options_.stride == options_.first;
    must_be_here.push_back(own && model_.must_be_here(numbers.back()));
  }
  absl::StatusOr<Lease> lease = manager_.Fetch(reads, {.target = Target()});
  if (!lease.ok()) {
    EXPECT_TRUE(NoRoom(lease.status())) << lease.status();
    leases_.clear();  // they may be what is in the way
    return;
  }
  for (size_t i = 0; i < reads.size(); ++i) {
    Check((*lease)[i], numbers[i], reads[i], must_be_here[i]);
  }
  if (Draw(8) == 0) leases_.push_back(*std::move(lease));
  if (leases_.size() > kMostLeases) leases_.clear();
}

void TierWorker::FetchAsync() {
  const uint64_t number = Own();
  const BlockRead read = Read(number);
  const bool must_be_here = model_.must_be_here(number);
  const absl::Time deadline = Draw(4) == 0 ? absl::InfinitePast() : absl::InfiniteFuture();
  absl::StatusOr<Ticket> ticket =
      manager_.FetchAsync({&read, 1}, {.target = Target(), .deadline = deadline});
  if (!ticket.ok()) {
    EXPECT_TRUE(NoRoom(ticket.status())) << ticket.status();
    return;
  }
  if (Draw(3) == 0) return;  // cancelled
  const Lease lease = ticket->Wait();
  const bool late = lease[0].outcome == BlockOutcome::kLate && deadline == absl::InfinitePast();
  if (!late) Check(lease[0], number, read, must_be_here);
}

void TierWorker::Prefetch() {
  const std::vector<BlockId> ids = TestIds(Own(), 1 + Draw(4));
  manager_.Prefetch(ids, Target());
}

}  // namespace terrace
