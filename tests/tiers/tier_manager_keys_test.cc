// Encryption at rest: what is on the disk, and who is served what with which key.

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tests/support/borrowed_device.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = size_t{16} << 10;
constexpr uint64_t kSpace = 7;

CipherKey Key(uint8_t fill) {
  std::array<std::byte, CipherKey::kBytes> bytes;
  bytes.fill(std::byte{fill});
  return *CipherKey::Create(bytes);
}

// A TierManager on a device that outlives it.
class TierManagerKeys : public testing::Test {
 protected:
  explicit TierManagerKeys() { Configure(0, 0); }

  // Starts over with these capacities, in blocks.
  void Configure(uint64_t hbm_slots, uint64_t dram_slots, uint64_t nvme_blocks = 96) {
    manager_.reset();
    options_ = TestTierOptions(kBlock, {hbm_slots, dram_slots, nvme_blocks * kBlock});
    device_ = *MemoryDevice::Create(
        {.size_bytes = PlanNvmeGeometry(options_.nvme_bytes, kBlock)->total_bytes(),
         .depth = 64,
         .transfer_hook = {}});
    Open();
  }
  void Open() {
    TierManager::Parts parts;
    parts.device = std::make_unique<BorrowedDevice>(*device_);
    auto opened = TierManager::Open(options_, std::move(parts));
    ASSERT_TRUE(opened.ok()) << opened.status();
    manager_ = *std::move(opened);
    options_.reuse = true;
  }
  void Reopen() {
    manager_.reset();
    Open();
  }
  absl::Status Put(uint64_t number, std::optional<uint64_t> space = kSpace,
                   Retention retention = Retention::kCached, uint64_t version = 0) {
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock, version);
    const BlockWrite write = {
        .id = TestId(number), .bytes = bytes, .retention = retention, .space = space};
    return manager_->Put({&write, 1});
  }
  void PutMany(uint64_t first, uint64_t count, std::optional<uint64_t> space = kSpace,
               Retention retention = Retention::kCached) {
    for (uint64_t number = first; number < first + count; ++number) {
      ASSERT_TRUE(Put(number, space, retention).ok());
    }
  }
  // Whether this part of a block is served with the right bytes.
  bool Serves(uint64_t number, uint32_t offset = 0, uint32_t bytes = kBlock, uint64_t version = 0) {
    const BlockRead read = {.id = TestId(number), .offset = offset, .bytes = bytes};
    const absl::StatusOr<Lease> lease = manager_->Fetch({&read, 1});
    if (!lease.ok() || (*lease)[0].outcome != BlockOutcome::kServed) return false;
    std::vector<std::byte> served(bytes);
    if (!manager_->CopyToHost((*lease)[0], absl::MakeSpan(served)).ok()) return false;
    const std::vector<std::byte> wanted = BlockBytes(TestId(number), kBlock, version);
    return std::equal(served.begin(), served.end(), wanted.begin() + offset);
  }
  bool Known(uint64_t number) { return manager_->Find(TestId(number)).has_value(); }
  void Drop(uint64_t number) {
    const BlockId id = TestId(number);
    manager_->Drop({&id, 1});
  }
  // Whether any page of a block is on the device as it was put.
  bool PlainOnDevice(uint64_t number) {
    const absl::Span<const std::byte> device = device_->bytes();
    const std::string_view all(reinterpret_cast<const char*>(device.data()), device.size());
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
    for (size_t at = 0; at < kBlock; at += kPageBytes) {
      const std::string_view start(reinterpret_cast<const char*>(&bytes[at]), 32);
      if (all.find(start) != std::string_view::npos) return true;
    }
    return false;
  }

  TierManagerOptions options_;
  std::unique_ptr<MemoryDevice> device_;
  std::unique_ptr<TierManager> manager_;
};

TEST_F(TierManagerKeys, BlocksAreOnTheDeviceInNoPlainForm) {
  for (const auto& [hbm, dram] : {std::pair{0, 0}, {4, 0}, {0, 6}, {4, 6}}) {
    SCOPED_TRACE(testing::Message() << hbm << " HBM slots, " << dram << " DRAM slots");
    Configure(hbm, dram);
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    PutMany(0, 20);
    ASSERT_TRUE(Put(100, std::nullopt).ok());
    ASSERT_TRUE(manager_->Flush().ok());
    for (uint64_t number = 0; number < 20; ++number) {
      EXPECT_TRUE(manager_->OnNvme(TestId(number)));
      EXPECT_FALSE(PlainOnDevice(number)) << number;
    }
    EXPECT_TRUE(PlainOnDevice(100));
  }
}

TEST_F(TierManagerKeys, BlocksAreServedWholeAndInPartsFromEveryTier) {
  for (const auto& [hbm, dram] : {std::pair{0, 0}, {4, 0}, {0, 6}, {4, 6}}) {
    SCOPED_TRACE(testing::Message() << hbm << " HBM slots, " << dram << " DRAM slots");
    Configure(hbm, dram);
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    for (uint64_t number = 0; number < 40; ++number) {
      ASSERT_TRUE(Put(number, number % 3 == 0 ? std::nullopt : std::optional(kSpace)).ok());
    }
    ASSERT_TRUE(manager_->Flush().ok());
    for (int round = 0; round < 2; ++round) {
      for (uint64_t number = 0; number < 40; ++number) {
        const uint32_t page = number % 4 * kPageBytes;
        EXPECT_TRUE(Serves(number, page, kPageBytes)) << number;
        EXPECT_TRUE(Serves(number, 0, 3 * kPageBytes)) << number;
        EXPECT_TRUE(Serves(number)) << number;
        EXPECT_TRUE(Serves(number, page, kPageBytes)) << number;
      }
      Reopen();
      ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    }
    EXPECT_EQ(manager_->Stats().nvme_faults.unopened_blocks, 0u);
  }
}

TEST_F(TierManagerKeys, ABlockThatIsDroppedOnItsWayDownIsNotWrittenInPlainForm) {
  for (const bool drop_key : {false, true}) {
    SCOPED_TRACE(testing::Message() << "drop the key: " << drop_key);
    Configure(0, 0);
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    ASSERT_TRUE(manager_->AddKey(kSpace + 1, Key(2)).ok());
    PutMany(0, 2);
    ASSERT_TRUE(Put(2, kSpace + 1).ok());
    if (drop_key) {
      manager_->DropKey(kSpace);
    } else {
      Drop(0);
      Drop(1);
    }
    ASSERT_TRUE(manager_->Flush().ok());
    for (uint64_t number = 0; number < 3; ++number) EXPECT_FALSE(PlainOnDevice(number)) << number;
    EXPECT_TRUE(Serves(2));
  }
}

// --- With and without keys ---

TEST_F(TierManagerKeys, WithoutItsKeyABlockIsAMissThatStays) {
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  PutMany(0, 10);
  PutMany(10, 2, std::nullopt);
  ASSERT_TRUE(manager_->Flush().ok());
  for (int run = 0; run < 2; ++run) {
    Reopen();
    for (uint64_t number = 0; number < 10; ++number) {
      EXPECT_FALSE(Known(number));
      EXPECT_FALSE(Serves(number));
    }
    for (uint64_t number = 10; number < 12; ++number) EXPECT_TRUE(Serves(number));
    EXPECT_EQ(manager_->Stats().placement.lost_blocks, 0u);
  }
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  for (uint64_t number = 0; number < 12; ++number) EXPECT_TRUE(Serves(number)) << number;
}

TEST_F(TierManagerKeys, WithAnotherKeyTheyStayMissesAndTheRightOneServesThem) {
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  PutMany(0, 10);
  ASSERT_TRUE(manager_->Flush().ok());
  Reopen();
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(2)).ok());
  for (uint64_t number = 0; number < 10; ++number) EXPECT_FALSE(Serves(number));
  ASSERT_TRUE(Put(20).ok());
  EXPECT_EQ(manager_->AddKey(kSpace, Key(1)).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(manager_->Flush().ok());
  Reopen();
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  for (uint64_t number = 0; number < 10; ++number) EXPECT_TRUE(Serves(number)) << number;
  EXPECT_FALSE(Known(20));
  EXPECT_EQ(manager_->Stats().nvme_faults.unopened_blocks, 0u);
}

TEST_F(TierManagerKeys, PutReplacesACachedBlockWithoutItsKeyAndLeavesAnOwnedOne) {
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  PutMany(0, 1, kSpace, Retention::kCached);
  PutMany(1, 1, kSpace, Retention::kOwned);
  ASSERT_TRUE(manager_->Flush().ok());
  Reopen();
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(2)).ok());
  EXPECT_TRUE(Put(0, kSpace, Retention::kCached, /*version=*/5).ok());
  EXPECT_EQ(Put(1, kSpace, Retention::kCached, 5).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Serves(0, 0, kBlock, /*version=*/5));
  ASSERT_TRUE(manager_->Flush().ok());
  Reopen();
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  EXPECT_FALSE(Known(0));  // the older copy does not come back
  EXPECT_TRUE(Serves(1));
}

TEST_F(TierManagerKeys, PutIntoANamespaceWithoutAKeyIsRefused) {
  EXPECT_EQ(Put(0).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  EXPECT_EQ(Put(0, kSpace + 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Put(0).ok());
  manager_->DropKey(kSpace);
  EXPECT_EQ(Put(1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Put(1, std::nullopt).ok());
}

TEST_F(TierManagerKeys, ABlockIsNotPutAgainInAnotherNamespace) {
  Configure(0, 8);
  ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  ASSERT_TRUE(manager_->AddKey(kSpace + 1, Key(2)).ok());
  const std::vector<std::optional<uint64_t>> spaces = {std::nullopt, kSpace, kSpace + 1};
  const auto text = [](std::optional<uint64_t> space) {
    return space ? "in namespace " + std::to_string(*space) : std::string("in no namespace");
  };
  for (size_t first = 0; first < spaces.size(); ++first) {
    ASSERT_TRUE(Put(first, spaces[first]).ok());
    for (const bool written : {false, true}) {
      if (written) {
        ASSERT_TRUE(manager_->Flush().ok());
      }
      for (size_t second = 0; second < spaces.size(); ++second) {
        SCOPED_TRACE(text(spaces[first]) + ", then " + text(spaces[second]));
        const absl::Status status = Put(first, spaces[second], Retention::kOwned, /*version=*/1);
        if (first == second) {
          EXPECT_TRUE(status.ok()) << status;
          continue;
        }
        EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
        const std::string message(status.message());
        EXPECT_NE(message.find("is put " + text(spaces[second])), message.npos) << message;
        EXPECT_NE(message.find("is here " + text(spaces[first])), message.npos) << message;
      }
    }
    EXPECT_TRUE(Serves(first)) << "the first bytes stay";
    Drop(first);
    EXPECT_TRUE(Put(first, spaces[(first + 1) % spaces.size()]).ok()) << "a new block";
  }
}

TEST_F(TierManagerKeys, ADroppedKeyTakesEveryBlockOfItsNamespaceOutOfAllTiers) {
  for (const auto& [hbm, dram] : {std::pair{0, 0}, {4, 0}, {0, 6}, {4, 6}}) {
    SCOPED_TRACE(testing::Message() << hbm << " HBM slots, " << dram << " DRAM slots");
    Configure(hbm, dram);
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    ASSERT_TRUE(manager_->AddKey(kSpace + 1, Key(1)).ok());
    PutMany(100, 3, kSpace + 1);
    PutMany(200, 3, std::nullopt);
    PutMany(0, 5, kSpace, Retention::kOwned);
    ASSERT_TRUE(manager_->Flush().ok());
    PutMany(5, 5);  // some of them are in memory alone
    for (uint64_t number = 0; number < 3; ++number) EXPECT_TRUE(Serves(number));
    manager_->DropKey(kSpace);
    for (int round = 0; round < 2; ++round) {
      for (uint64_t number = 0; number < 10; ++number) {
        EXPECT_FALSE(Known(number));
        EXPECT_FALSE(Serves(number));
      }
      for (const uint64_t number : {100, 101, 102, 200, 201, 202}) EXPECT_TRUE(Serves(number));
      // Nor do they come back with the key.
      ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
      ASSERT_TRUE(manager_->Flush().ok());
      Reopen();
      ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
      ASSERT_TRUE(manager_->AddKey(kSpace + 1, Key(1)).ok());
    }
  }
}

TEST(TierManagerKeysWithoutNvme, AKeyIsRefused) {
  TestTier tier(kBlock, {.dram_slots = 4});
  EXPECT_EQ(tier->AddKey(kSpace, Key(1)).code(), absl::StatusCode::kFailedPrecondition);
  tier->DropKey(kSpace);
  EXPECT_TRUE(tier.Put(1).ok());
  EXPECT_TRUE(tier.Serves(1));
}

// --- Rewriting ---

TEST_F(TierManagerKeys, BlocksThatAreRewrittenStayReadable) {
  for (const bool key_is_here : {true, false}) {
    SCOPED_TRACE(testing::Message() << "key: " << key_is_here);
    Configure(0, 6, /*nvme_blocks=*/512);
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    // Owned blocks between cached ones, so that no segment is theirs alone.
    for (uint64_t number = 0; number < 40; ++number) {
      const bool owned = number % 8 == 0;
      ASSERT_TRUE(Put(number, kSpace, owned ? Retention::kOwned : Retention::kCached).ok());
    }
    ASSERT_TRUE(manager_->Flush().ok());
    if (!key_is_here) Reopen();
    PutMany(1000, 1200, std::nullopt);
    ASSERT_TRUE(manager_->Flush().ok());
    EXPECT_GT(manager_->Stats().placement.rewritten_blocks, 5u);
    EXPECT_FALSE(Known(1));
    if (!key_is_here) {
      ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    }
    for (uint64_t number = 0; number < 40; number += 8) {
      EXPECT_TRUE(Serves(number)) << number;
      EXPECT_TRUE(Serves(number, kPageBytes, kPageBytes)) << number;
      EXPECT_FALSE(PlainOnDevice(number));
    }
    Reopen();
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    for (uint64_t number = 0; number < 40; number += 8) EXPECT_TRUE(Serves(number)) << number;
  }
}

}  // namespace
}  // namespace terrace
