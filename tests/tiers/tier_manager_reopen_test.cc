// What stays in the tier directory, and whose directory may be opened. Real files.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/checksum.h"
#include "tests/support/open_count.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr size_t kBlock = 16 << 10;
constexpr uint64_t kNvme = 2 << 20;

class TierManagerReopen : public testing::Test {
 protected:
  TierManagerOptions Options(bool reuse) const {
    TierManagerOptions options = TestTierOptions(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
    options.nvme_dir = dir_.path();
    options.reuse = reuse;
    options.model_fingerprint = 42;
    return options;
  }
  std::string File() const { return dir_.Join("terrace.kv"); }
  // Of the whole file, length included.
  uint64_t FileHash() const {
    std::ifstream file(File(), std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)),
                                  std::istreambuf_iterator<char>());
    return Checksum64(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(bytes.data()),
                                          bytes.size())) ^
           bytes.size();
  }
  void WriteFile(const std::string& text) const {
    std::ofstream(File(), std::ios::binary | std::ios::trunc) << text;
  }
  static void Put(TierManager& manager, uint64_t number, Retention retention = Retention::kCached) {
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
    const BlockWrite write = {.id = TestId(number), .bytes = bytes, .retention = retention};
    ASSERT_TRUE(manager.Put({&write, 1}).ok());
  }
  static bool Serves(TierManager& manager, uint64_t number) {
    const BlockRead read = {.id = TestId(number)};
    const absl::StatusOr<Lease> lease = manager.Fetch({&read, 1});
    if (!lease.ok() || (*lease)[0].outcome != BlockOutcome::kServed) return false;
    const std::vector<std::byte> wanted = BlockBytes(TestId(number), kBlock);
    return std::equal(wanted.begin(), wanted.end(), (*lease)[0].data);
  }
  // A first run that leaves blocks [0, count) behind.
  void FirstRun(uint64_t count) {
    auto manager = TierManager::Open(Options(false));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < count; ++number) Put(**manager, number);
    ASSERT_TRUE((*manager)->Flush().ok());
  }
  void ExpectRefused(const TierManagerOptions& options, absl::StatusCode code) {
    const uint64_t before = FileHash();
    const absl::Status status = TierManager::Open(options).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(status.message(), HasSubstr(File()));
    EXPECT_EQ(FileHash(), before);
  }

  TempDir dir_;
};

TEST_F(TierManagerReopen, WithReuseEveryFlushedBlockIsServed) {
  FirstRun(40);
  for (int run = 0; run < 2; ++run) {
    auto manager = TierManager::Open(Options(true));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < 40; ++number) {
      EXPECT_EQ((*manager)->Find(TestId(number)), Tier::kNvme);
      EXPECT_TRUE(Serves(**manager, number)) << number;
    }
    EXPECT_EQ((*manager)->Stats().placement.lost_blocks, 0);
  }
}

TEST_F(TierManagerReopen, ReuseGoesOnWhereTheLastRunEnded) {
  FirstRun(8);
  for (uint64_t run = 1; run <= 4; ++run) {
    auto manager = TierManager::Open(Options(true));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 8 * run; number < 8 * (run + 1); ++number) Put(**manager, number);
    ASSERT_TRUE((*manager)->Flush().ok());
    for (uint64_t number = 0; number < 8 * (run + 1); ++number) {
      EXPECT_TRUE(Serves(**manager, number)) << number;
    }
  }
}

TEST_F(TierManagerReopen, AFullTierIsReopenedAndTakesNewBlocks) {
  FirstRun(400);  // several times the capacity
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  uint64_t kept = 0;
  for (uint64_t number = 0; number < 400; ++number) {
    if (!(*manager)->Find(TestId(number))) continue;
    ++kept;
    EXPECT_TRUE(Serves(**manager, number)) << number;
  }
  EXPECT_GT(kept, 50);
  for (uint64_t number = 1000; number < 1200; ++number) Put(**manager, number);
  ASSERT_TRUE((*manager)->Flush().ok());
  EXPECT_TRUE(Serves(**manager, 1199));
  EXPECT_TRUE(Serves(**manager, 1180));
}

TEST_F(TierManagerReopen, OwnedBlocksAreStillOwned) {
  {
    auto manager = TierManager::Open(Options(false));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < 5; ++number) Put(**manager, number, Retention::kOwned);
    ASSERT_TRUE((*manager)->Flush().ok());
  }
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  for (uint64_t number = 100; number < 500; ++number) Put(**manager, number);
  for (uint64_t number = 0; number < 5; ++number) EXPECT_TRUE(Serves(**manager, number));
}

TEST_F(TierManagerReopen, WithoutReuseTheTierStartsEmpty) {
  FirstRun(10);
  {
    auto manager = TierManager::Open(Options(false));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < 10; ++number) {
      EXPECT_EQ((*manager)->Find(TestId(number)), std::nullopt);
    }
    Put(**manager, 100);
    ASSERT_TRUE((*manager)->Flush().ok());
  }
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  for (uint64_t number = 0; number < 10; ++number) {
    EXPECT_EQ((*manager)->Find(TestId(number)), std::nullopt);
  }
  EXPECT_TRUE(Serves(**manager, 100));
}

TEST_F(TierManagerReopen, AReusedTierThatHoldsStaleGroupsBehindNewOnesServesNeitherWrong) {
  // Each run overwrites segments in which older groups remain behind the newer ones.
  FirstRun(120);
  for (uint64_t run = 1; run <= 3; ++run) {
    auto manager = TierManager::Open(Options(true));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < 37; ++number) Put(**manager, 1000 * run + number);
    ASSERT_TRUE((*manager)->Flush().ok());
    manager->reset();
    manager = TierManager::Open(Options(true));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < 4000; ++number) {
      const bool found = (*manager)->Find(TestId(number)).has_value();
      EXPECT_EQ(Serves(**manager, number), found) << number;
    }
    for (uint64_t number = 0; number < 37; ++number) {
      EXPECT_TRUE(Serves(**manager, 1000 * run + number));
    }
    EXPECT_EQ((*manager)->Stats().placement.lost_blocks, 0);
  }
}

// Another process has made the file and not yet written to it when this one looks at it.
TEST_F(TierManagerReopen, ATierThatIsMadeWhileItIsOpenedIsServedOrRefusedAsAnyOther) {
  FirstRun(40);
  std::ifstream file(File(), std::ios::binary);
  const std::string tier(std::istreambuf_iterator<char>(file), {});
  for (const uint64_t model : {42, 43}) {
    SCOPED_TRACE(model);
    ASSERT_TRUE(std::filesystem::remove(File()));
    int maker = ::open(File().c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ASSERT_GE(maker, 0);
    ASSERT_EQ(::flock(maker, LOCK_EX), 0);
    absl::StatusOr<std::unique_ptr<TierManager>> manager;
    TierManagerOptions options = Options(true);
    options.model_fingerprint = model;
    std::thread opener([&] { manager = TierManager::Open(options); });
    while (OpenCount(File()) < 2) std::this_thread::yield();
    ASSERT_EQ(::pwrite(maker, tier.data(), tier.size(), 0), static_cast<ssize_t>(tier.size()));
    ::close(maker);
    opener.join();
    if (model == 42) {
      ASSERT_TRUE(manager.ok()) << manager.status();
      for (uint64_t number = 0; number < 40; ++number) EXPECT_TRUE(Serves(**manager, number));
    } else {
      EXPECT_EQ(manager.status().code(), absl::StatusCode::kInvalidArgument) << manager.status();
      std::ifstream after(File(), std::ios::binary);
      EXPECT_TRUE(std::string(std::istreambuf_iterator<char>(after), {}) == tier);
    }
  }
}

// --- Files of another length ---

TEST_F(TierManagerReopen, AFileThatWasCutShortIsReportedAndTheTierIsDegraded) {
  FirstRun(40);
  const uint64_t bytes = std::filesystem::file_size(File());
  for (const uint64_t kept : {bytes - 1, bytes / 2, uint64_t{5000}}) {
    SCOPED_TRACE(kept);
    std::filesystem::resize_file(File(), kept);
    {
      auto manager = TierManager::Open(Options(true));
      ASSERT_TRUE(manager.ok()) << manager.status();
      const TierStats stats = (*manager)->Stats();
      EXPECT_EQ(stats.recovery.missing_bytes, bytes - kept);
      EXPECT_EQ(stats.nvme_health, NvmeHealth::kDegraded);
      Put(**manager, 1000);
      EXPECT_TRUE((*manager)->Flush().ok());
      EXPECT_TRUE(Serves(**manager, 1000));
    }
    EXPECT_EQ(std::filesystem::file_size(File()), bytes);
  }
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  EXPECT_EQ((*manager)->Stats().recovery.missing_bytes, 0);
}

TEST_F(TierManagerReopen, AFileThatIsTooLongIsRefusedAndUntouched) {
  FirstRun(10);
  std::filesystem::resize_file(File(), std::filesystem::file_size(File()) + 1);
  ExpectRefused(Options(true), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(TierManager::Open(Options(true)).status().message()),
              HasSubstr("fsck --repair"));
}

// --- Refusals ---

TEST_F(TierManagerReopen, AnotherBlockSizeModelOrCapacityIsRefusedAndTheFileUntouched) {
  FirstRun(10);
  TierManagerOptions options = Options(true);
  options.block_bytes = 2 * kBlock;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument);
  options = Options(true);
  options.model_fingerprint = 43;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument);
  options = Options(true);
  options.nvme_bytes = 2 * kNvme;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument);
  options.nvme_bytes = kNvme / 2;
  ExpectRefused(options, absl::StatusCode::kInvalidArgument);
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  EXPECT_TRUE(Serves(**manager, 7));
}

TEST_F(TierManagerReopen, AFileThatIsNotOursIsRefusedAndUntouched) {
  for (const size_t length : {size_t{5}, size_t{4096}, size_t{20000}, size_t{4} << 20}) {
    std::string text(length, 'x');
    WriteFile(text);
    for (const bool reuse : {false, true}) {
      ExpectRefused(Options(reuse), absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST_F(TierManagerReopen, AnotherFormatVersionIsRefusedAndUntouched) {
  FirstRun(3);
  {
    std::fstream file(File(), std::ios::binary | std::ios::in | std::ios::out);
    for (const int page : {0, 1}) {
      file.seekp(page * static_cast<int>(kPageBytes) + 16);  // checksum, magic number, version
      file.put(2);
    }
  }
  for (const bool reuse : {false, true}) {
    ExpectRefused(Options(reuse), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(TierManagerReopen, OneDamagedSuperblockIsSurvived) {
  FirstRun(6);
  for (const int page : {0, 1}) {
    std::fstream file(File(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(page * static_cast<int>(kPageBytes) + 2000);
    file.put(1);
    file.close();
    auto manager = TierManager::Open(Options(true));
    if (page == 1) {  // now both are damaged
      EXPECT_EQ(manager.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < 6; ++number) EXPECT_TRUE(Serves(**manager, number));
  }
}

TEST_F(TierManagerReopen, ASecondOpenOfTheSameDirectoryIsRefusedAndHarmsNothing) {
  auto manager = TierManager::Open(Options(false));
  ASSERT_TRUE(manager.ok()) << manager.status();
  for (uint64_t number = 0; number < 30; ++number) Put(**manager, number);
  ASSERT_TRUE((*manager)->Flush().ok());
  for (const bool reuse : {false, true}) {
    ExpectRefused(Options(reuse), absl::StatusCode::kUnavailable);
  }
  for (uint64_t number = 0; number < 30; ++number) EXPECT_TRUE(Serves(**manager, number));
  Put(**manager, 100);
  EXPECT_TRUE((*manager)->Flush().ok());
  manager->reset();
  EXPECT_TRUE(TierManager::Open(Options(true)).ok());
}

TEST_F(TierManagerReopen, AMissingOrEmptyDirectoryNameIsAnError) {
  TierManagerOptions options = Options(false);
  options.nvme_dir = dir_.Join("not_there");
  EXPECT_EQ(TierManager::Open(options).status().code(), absl::StatusCode::kNotFound);
  options.nvme_dir = "";
  EXPECT_EQ(TierManager::Open(options).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(dir_.Join("not_there")));
}

TEST_F(TierManagerReopen, ReuseOfAnEmptyDirectoryStartsEmpty) {
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  Put(**manager, 1);
  EXPECT_TRUE(Serves(**manager, 1));
}

TEST_F(TierManagerReopen, ADamagedBlockIsLostAndTheOthersAreServed) {
  uint64_t offset = 0;
  {
    auto manager = TierManager::Open(Options(false));
    ASSERT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < 6; ++number) Put(**manager, number);
    ASSERT_TRUE((*manager)->Flush().ok());
    offset = *(*manager)->NvmeOffset(TestId(2));
  }
  {
    std::fstream file(File(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(offset) + 5000);
    const char byte = static_cast<char>(file.get());
    file.seekp(static_cast<std::streamoff>(offset) + 5000);
    file.put(static_cast<char>(byte ^ 0x10));
  }
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  for (uint64_t number = 0; number < 6; ++number) {
    EXPECT_EQ(Serves(**manager, number), number != 2) << number;
  }
  EXPECT_EQ((*manager)->Stats().placement.lost_blocks, 1);
}

}  // namespace
}  // namespace terrace
