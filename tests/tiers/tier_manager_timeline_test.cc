// What TierManager records on a timeline.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tests/support/trace_events.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Key;
using ::testing::Not;

constexpr size_t kBlockBytes = 8192;
constexpr uint64_t kNvmeBytes = uint64_t{64} << 20;

class TierManagerTimelineTest : public ::testing::Test {
 protected:
  TierManagerTimelineTest() : timeline_(*Timeline::Create(100'000)) {
    timeline_->NameThread("test");
  }

  TierManagerOptions Options(uint64_t nvme_bytes) const {
    TierManagerOptions options =
        TestTierOptions(kBlockBytes, {.hbm_slots = 8, .dram_slots = 8, .nvme_bytes = nvme_bytes});
    options.timeline = timeline_;
    return options;
  }

  const std::shared_ptr<Timeline> timeline_;
};

TEST_F(TierManagerTimelineTest, ShowsCallsReadsWritesAndCopies) {
  constexpr uint64_t kBlocks = 64;
  {
    TestTier tier(Options(kNvmeBytes));
    tier.PutMany(0, kBlocks);
    ASSERT_TRUE(tier->Flush().ok());
    for (uint64_t number = 0; number < kBlocks; ++number) {
      EXPECT_TRUE(tier.Serves(number, number % 2 == 0 ? Tier::kHbm : Tier::kDram));
    }
    EXPECT_GT(tier.Stats().placement.hits[static_cast<size_t>(Tier::kNvme)], 0u);
  }
  const Json json = Written(*timeline_);
  EXPECT_EQ(json["otherData"]["dropped_events"], 0);
  ExpectNested(json);
  const auto rows = SpansByRow(json);
  ASSERT_THAT(rows, Contains(Key("test")));
  EXPECT_THAT(rows.at("test"),
              IsSupersetOf({"open tiers", "put", "flush", "fetch", "await blocks"}));
  ASSERT_THAT(rows, AllOf(Contains(Key("NVMe demand")), Contains(Key("NVMe offload")),
                          Contains(Key("HBM up (emulated)"))));
  EXPECT_THAT(rows.at("NVMe demand"), Contains("read"));
  EXPECT_THAT(rows.at("NVMe offload"), IsSupersetOf({"write", "sync"}));
  EXPECT_THAT(rows.at("HBM up (emulated)"), Contains("copy"));
  EXPECT_THAT(Names(Events(json, "C")), IsSupersetOf({"slots used in HBM", "slots used in DRAM"}));
  // Work that nobody waits for is the mover's, all of it is somebody's.
  std::vector<std::string> all;
  for (const auto& [row, names] : rows) all.insert(all.end(), names.begin(), names.end());
  EXPECT_THAT(all, Contains("verify"));
}

TEST_F(TierManagerTimelineTest, BytesOfReadsAndCopiesAreThoseOfTheStatistics) {
  TierStats stats;
  {
    TestTier tier(Options(kNvmeBytes));
    tier.PutMany(0, 40);
    ASSERT_TRUE(tier->Flush().ok());
    for (uint64_t number = 0; number < 40; ++number) EXPECT_TRUE(tier.Serves(number));
    ASSERT_TRUE(tier->Flush().ok());
    stats = tier.Stats();
  }
  const Json json = Written(*timeline_);
  const std::map<Row, std::string> names = RowNames(json);
  std::map<std::string, uint64_t> bytes;
  for (const Json& span : Events(json, "X")) {
    if (!span.contains("args") || !span["args"].contains("bytes")) continue;
    const std::string kind = names.at(RowOf(span)).substr(0, 3);  // "NVM" or "HBM"
    bytes[kind + " " + span["name"].get<std::string>()] += span["args"]["bytes"].get<uint64_t>();
  }
  EXPECT_EQ(bytes["NVM read"], stats.nvme_read_bytes);
  EXPECT_EQ(bytes["NVM write"], stats.nvme_written_bytes);
  EXPECT_GE(bytes["HBM copy"], stats.hbm_copied_bytes) << "reading it back copies as well";
  EXPECT_GT(stats.hbm_copied_bytes, 0u);
}

TEST_F(TierManagerTimelineTest, WithoutADiskThereAreNoRowsForOne) {
  {
    TestTier tier(Options(/*nvme_bytes=*/0));
    tier.PutMany(0, 4);
    EXPECT_TRUE(tier.Serves(2));
  }
  for (const auto& [row, names] : SpansByRow(Written(*timeline_))) {
    EXPECT_THAT(row, Not(HasSubstr("NVMe")));
  }
}

}  // namespace
}  // namespace terrace
