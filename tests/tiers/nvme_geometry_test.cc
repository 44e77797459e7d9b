#include "tiers/nvme_geometry.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "tiers/nvme_format.h"

namespace terrace {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

// Block sizes from one page to the largest that options allow.
size_t RandomBlockBytes(std::mt19937_64& random) {
  const size_t pages = size_t{1} << (random() % 19);
  return std::min<size_t>(pages + random() % pages, size_t{1} << 18) * kPageBytes;
}

// Checks that the records of `geometry` fit where they are to go.
void CheckRecords(const NvmeGeometry& geometry) {
  EXPECT_LE(GroupHeaderBytes(geometry, geometry.group_blocks), geometry.header_pages * kPageBytes);
  EXPECT_LE(ManifestRecordBytes(geometry.stretches()), geometry.manifest_pages * kPageBytes);
  // One write, header included, stays below what one request may carry.
  EXPECT_LE(geometry.group_blocks, 1023u);
}

void CheckGeometry(const NvmeGeometry& geometry, uint64_t capacity, size_t block_bytes) {
  EXPECT_LE(geometry.total_bytes(), capacity);
  // Nothing that could hold another segment is left over.
  const uint64_t another = geometry.segment_pages + kManifestCopies * geometry.manifest_pages;
  EXPECT_GT(geometry.total_bytes() + (another + 1) * kPageBytes, capacity);
  EXPECT_EQ(geometry.pages_per_block, block_bytes / kPageBytes);
  EXPECT_GE(geometry.segment_count, 2u);
  EXPECT_GE(geometry.group_blocks, 1u);
  // Every segment holds a group of one block at least, and whole groups of what it says.
  EXPECT_GE(geometry.data_pages(), geometry.group_pages(1));
  EXPECT_GE(geometry.blocks_per_segment(), 1u);
  const uint64_t groups =
      (geometry.blocks_per_segment() + geometry.group_blocks - 1) / geometry.group_blocks;
  EXPECT_LE(groups * geometry.header_pages +
                uint64_t{geometry.blocks_per_segment()} * geometry.pages_per_block,
            geometry.data_pages());
  // Segments are no larger than their share, unless one block needs it.
  const uint64_t share = std::min<uint64_t>(64 * kMiB, capacity / 32);
  if (uint64_t{geometry.segment_pages} * kPageBytes > share) {
    EXPECT_FALSE(DeriveNvmeGeometry(block_bytes, geometry.segment_pages - 1, 2).ok());
  }
  CheckRecords(geometry);
}

TEST(NvmeGeometry, FitsEveryCapacityAndBlockSize) {
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const size_t block_bytes = RandomBlockBytes(random);
    const uint64_t capacity = random() >> (20 + random() % 30);
    const auto geometry = PlanNvmeGeometry(capacity, block_bytes);
    if (!geometry.ok()) {
      EXPECT_EQ(geometry.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    CheckGeometry(*geometry, capacity, block_bytes);
    if (testing::Test::HasFailure()) return;
  }
}

// The last number of a message.
uint64_t NumberAtTheEnd(absl::string_view message) {
  const std::vector<std::string> words = absl::StrSplit(message, ' ');
  uint64_t number = 0;
  EXPECT_TRUE(absl::SimpleAtoi(words.back(), &number)) << message;
  return number;
}

TEST(NvmeGeometry, NamesTheSmallestCapacityAndThatOneWorks) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const size_t block_bytes = RandomBlockBytes(random);
    const auto refused = PlanNvmeGeometry(random() % block_bytes, block_bytes);
    ASSERT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    const uint64_t smallest = NumberAtTheEnd(refused.status().message());
    const auto geometry = PlanNvmeGeometry(smallest, block_bytes);
    ASSERT_TRUE(geometry.ok()) << geometry.status();
    CheckGeometry(*geometry, smallest, block_bytes);
    EXPECT_FALSE(PlanNvmeGeometry(smallest - 1, block_bytes).ok());
  }
}

TEST(NvmeGeometry, NamesTheLargestCapacityAndThatOneWorks) {
  const auto refused = PlanNvmeGeometry(UINT64_MAX, 64 << 10);
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  const uint64_t largest = NumberAtTheEnd(refused.status().message());
  const auto geometry = PlanNvmeGeometry(largest, 64 << 10);
  ASSERT_TRUE(geometry.ok()) << geometry.status();
  CheckGeometry(*geometry, largest, 64 << 10);
  EXPECT_FALSE(PlanNvmeGeometry(largest + 1, 64 << 10).ok());
}

TEST(NvmeGeometry, MakesSegmentsOf64MiBWhereThereIsRoom) {
  const auto geometry = PlanNvmeGeometry(100 * kGiB, 64 << 10);
  ASSERT_TRUE(geometry.ok()) << geometry.status();
  EXPECT_EQ(geometry->segment_pages * kPageBytes, 64 * kMiB);
  EXPECT_EQ(geometry->group_blocks, 16u);
  EXPECT_EQ(geometry->header_pages, 1u);
  EXPECT_EQ(geometry->manifest_pages, 1u);
}

TEST(NvmeGeometry, ItsPartsFollowEachOtherWithoutGapOrOverlap) {
  for (const size_t block_bytes : {kPageBytes, size_t{64} << 10, 3 * kMiB}) {
    const NvmeGeometry geometry = *PlanNvmeGeometry(kGiB, block_bytes);
    uint64_t page = kSuperblockPages;
    for (uint32_t i = 0; i < geometry.segment_count; ++i) {
      for (uint32_t copy = 0; copy < kManifestCopies; ++copy) {
        EXPECT_EQ(geometry.ManifestPage(SegmentIndex{i}, copy), page);
        page += geometry.manifest_pages;
      }
    }
    EXPECT_EQ(geometry.log_start(), page);
    for (uint32_t i = 0; i < geometry.segment_count; ++i) {
      const SegmentIndex segment{i};
      EXPECT_EQ(geometry.SegmentPage(segment), page);
      EXPECT_EQ(geometry.FooterPage(segment), page + geometry.data_pages());
      EXPECT_EQ(geometry.SegmentOf(page), segment);
      page += geometry.segment_pages;
      EXPECT_EQ(geometry.SegmentOf(page - 1), segment);
    }
    EXPECT_EQ(geometry.total_pages(), page);
  }
}

// Fills the data of a segment with groups of sizes that `next` gives, and returns what their
// headers take in a footer.
template <typename Next>
uint64_t FooterBytes(const NvmeGeometry& geometry, Next next) {
  uint64_t bytes = MaxFooterBytes(geometry.pages_per_block, geometry.header_pages,
                                  geometry.group_blocks, /*data_pages=*/0);
  for (uint32_t left = geometry.data_pages(); left >= geometry.group_pages(1);) {
    const uint32_t most = (left - geometry.header_pages) / geometry.pages_per_block;
    const uint32_t blocks = std::min<uint32_t>(most, next());
    bytes += GroupHeaderBytes(geometry, blocks);
    left -= geometry.group_pages(blocks);
  }
  return bytes;
}

TEST(NvmeGeometry, AFooterHoldsTheHeadersOfEveryMixOfGroups) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const size_t block_bytes = RandomBlockBytes(random);
    const auto geometry = PlanNvmeGeometry(random() >> (20 + random() % 20), block_bytes);
    if (!geometry.ok()) continue;
    const uint64_t room = geometry->footer_pages * kPageBytes;
    EXPECT_LE(FooterBytes(*geometry, [] { return 1u; }), room);
    EXPECT_LE(FooterBytes(*geometry, [&] { return geometry->group_blocks; }), room);
    EXPECT_LE(FooterBytes(*geometry, [&] { return 1 + random() % geometry->group_blocks; }), room);
    const uint32_t same = 1 + random() % geometry->group_blocks;
    EXPECT_LE(FooterBytes(*geometry, [&] { return same; }), room) << same << " blocks a group";
  }
}

// --- From the numbers of a superblock ---

TEST(NvmeGeometry, FollowsFromBlocksAndSegmentsAlone) {
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const size_t block_bytes = RandomBlockBytes(random);
    const auto planned = PlanNvmeGeometry(random() >> (20 + random() % 20), block_bytes);
    if (!planned.ok()) continue;
    const auto derived =
        DeriveNvmeGeometry(block_bytes, planned->segment_pages, planned->segment_count);
    ASSERT_TRUE(derived.ok()) << derived.status();
    EXPECT_TRUE(*derived == *planned);
  }
}

TEST(NvmeGeometry, WhateverNumbersMakeOneItIsSound) {
  uint64_t sound = 0;
  for (uint64_t seed = 1; seed <= 5000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const uint64_t block_bytes = RandomBlockBytes(random);
    const uint32_t segment_pages = static_cast<uint32_t>(random() >> (32 + random() % 32));
    const uint32_t segment_count = static_cast<uint32_t>(random() >> (32 + random() % 32));
    const auto geometry = DeriveNvmeGeometry(block_bytes, segment_pages, segment_count);
    if (!geometry.ok()) {
      EXPECT_EQ(geometry.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++sound;
    EXPECT_LE(geometry->total_pages(), UINT32_MAX);
    EXPECT_GE(geometry->blocks_per_segment(), 1u);
    CheckRecords(*geometry);
  }
  EXPECT_GT(sound, 100u);
}

TEST(NvmeGeometry, RefusesImpossibleNumbers) {
  constexpr uint64_t kBlock = 64 << 10;
  ASSERT_TRUE(DeriveNvmeGeometry(kBlock, 256, 2).ok());
  const struct {
    const char* what;
    uint64_t block_bytes;
    uint32_t segment_pages;
    uint32_t segment_count;
  } impossible[] = {
      {"no bytes", 0, 256, 2},
      {"half a page", kBlock + kPageBytes / 2, 256, 2},
      {"blocks beyond all bounds", UINT64_MAX - kPageBytes + 1, 256, 2},
      {"a segment of one block and no header", kBlock, 16, 2},
      {"a segment without room for its footer", kBlock, 17, 2},
      {"no pages", kBlock, 0, 2},
      {"no segment", kBlock, 256, 0},
      {"a single segment", kBlock, 256, 1},
      {"pages beyond 16 TiB", kBlock, UINT32_MAX, UINT32_MAX},
      {"a log of 16 TiB and a manifest beyond", kBlock, 256, UINT32_MAX / 256},
  };
  for (const auto& numbers : impossible) {
    EXPECT_EQ(DeriveNvmeGeometry(numbers.block_bytes, numbers.segment_pages, numbers.segment_count)
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument)
        << numbers.what;
  }
}

}  // namespace
}  // namespace terrace
