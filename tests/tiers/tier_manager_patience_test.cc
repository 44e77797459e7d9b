// Calls that may wait for leases of others to end.

#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = 16 << 10;

class TierManagerPatience : public testing::Test {
 protected:
  // Two slots of DRAM, both leased; blocks 3 and 4 are on NVMe.
  void SetUp() override {
    tier_.PutMany(3, 2);
    ASSERT_TRUE(tier_->Flush().ok());
    tier_.PutMany(1, 2);
    ASSERT_TRUE(tier_->Flush().ok());
    for (int i = 0; i < 2; ++i) {
      auto lease = tier_.Fetch(1 + static_cast<uint64_t>(i));
      ASSERT_TRUE(lease.ok()) << lease.status();
      leases_[i] = *std::move(lease);
    }
  }

  bool CanFetchAhead(uint64_t number) {
    const BlockRead read = {.id = TestId(number)};
    const auto ticket = tier_->TryFetchAsync({&read, 1});
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    return ticket.ok() && ticket->has_value();
  }

  TestTier tier_{kBlock, {.dram_slots = 2, .nvme_bytes = 4 << 20}};
  Lease leases_[2];
  const std::vector<BlockRead> both_ = {{.id = TestId(3)}, {.id = TestId(4)}};
};

TEST_F(TierManagerPatience, FetchWaitsUntilLeasesEndAndIsServedFirst) {
  EXPECT_TRUE(absl::IsResourceExhausted(tier_->Fetch(both_).status())) << "without patience";
  absl::StatusOr<Lease> got = absl::UnknownError("not yet");
  std::thread waiter([&] {
    got = tier_->Fetch(both_, {.target = Tier::kDram, .lease_patience = absl::InfiniteDuration()});
  });
  // One slot is free, and who fetches ahead has it until somebody waits.
  leases_[0].Release();
  while (CanFetchAhead(3)) std::this_thread::yield();
  leases_[1].Release();
  waiter.join();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(tier_.Right((*got)[0], 3) && tier_.Right((*got)[1], 4));
}

TEST_F(TierManagerPatience, PatienceEnds) {
  const absl::Duration patience = absl::Milliseconds(30);
  const absl::Time start = absl::Now();
  EXPECT_TRUE(absl::IsResourceExhausted(
      tier_->Fetch(both_, {.target = Tier::kDram, .lease_patience = patience}).status()));
  EXPECT_GE(absl::Now() - start, patience);
  const std::vector<std::byte> bytes(kBlock);
  const BlockWrite write = {.id = TestId(9), .bytes = bytes};
  const absl::Time before_put = absl::Now();
  EXPECT_TRUE(absl::IsResourceExhausted(tier_->Put({&write, 1}, {.lease_patience = patience})));
  EXPECT_GE(absl::Now() - before_put, patience);
}

}  // namespace
}  // namespace terrace
