#include "tiers/nvme_format.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Block sizes from one page to the largest that options allow.
size_t RandomBlockBytes(std::mt19937_64& random) {
  const size_t pages = size_t{1} << (random() % 19);
  return std::min<size_t>(pages + random() % pages, size_t{1} << 18) * kPageBytes;
}

void CheckGeometry(const NvmeGeometry& geometry, uint64_t capacity, size_t block_bytes) {
  EXPECT_LE(geometry.total_bytes(), capacity);
  // Nothing that could hold another segment is left over.
  EXPECT_GT(geometry.total_bytes() + uint64_t{geometry.segment_pages + 1} * kPageBytes, capacity);
  EXPECT_EQ(geometry.pages_per_block, block_bytes / kPageBytes);
  EXPECT_GE(geometry.segment_count, 2u);
  EXPECT_GE(geometry.group_blocks, 1u);
  // Every segment holds a group of one block at least, and whole groups of what it says.
  EXPECT_GE(geometry.segment_pages, geometry.header_pages + geometry.pages_per_block);
  EXPECT_GE(geometry.blocks_per_segment(), 1u);
  const uint64_t groups =
      (geometry.blocks_per_segment() + geometry.group_blocks - 1) / geometry.group_blocks;
  EXPECT_LE(groups * geometry.header_pages +
                uint64_t{geometry.blocks_per_segment()} * geometry.pages_per_block,
            geometry.segment_pages);
  // No more than the share, unless one block needs it.
  const uint64_t share = std::min<uint64_t>(64 * kMiB, capacity / 32);
  const uint64_t smallest = uint64_t{geometry.header_pages + geometry.pages_per_block} * kPageBytes;
  EXPECT_LE(uint64_t{geometry.segment_pages} * kPageBytes, std::max(share, smallest));
  // One write, headers included, stays below what one request may carry.
  EXPECT_LE(geometry.group_blocks, 1023u);
  // A header has room for 48 bytes and, for each block, 24 and one checksum a page.
  EXPECT_LE(48 + geometry.group_blocks * (24 + 4 * uint64_t{geometry.pages_per_block}),
            geometry.header_pages * kPageBytes);
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
  const auto geometry = PlanNvmeGeometry(uint64_t{100} << 30, 64 << 10);
  ASSERT_TRUE(geometry.ok());
  EXPECT_EQ(geometry->segment_pages * kPageBytes, 64 * kMiB);
  EXPECT_EQ(geometry->group_blocks, 16u);
  EXPECT_EQ(geometry->header_pages, 1u);
}

// --- Superblock ---

Superblock SomeSuperblock() {
  return {.geometry = *PlanNvmeGeometry(64 * kMiB, 64 << 10),
          .block_bytes = 64 << 10,
          .model_fingerprint = 0x1234567890abcdef,
          .epoch = 42};
}

std::vector<std::byte> Encoded(const Superblock& superblock) {
  std::vector<std::byte> page(kPageBytes, std::byte{0xee});
  EncodeSuperblock(superblock, absl::MakeSpan(page));
  return page;
}

TEST(Superblock, ComesBackAsItWasWritten) {
  const Superblock written = SomeSuperblock();
  const auto read = DecodeSuperblock(Encoded(written));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->geometry == written.geometry);
  EXPECT_EQ(read->block_bytes, written.block_bytes);
  EXPECT_EQ(read->model_fingerprint, written.model_fingerprint);
  EXPECT_EQ(read->epoch, written.epoch);
}

TEST(Superblock, EqualContentGivesEqualBytes) {
  EXPECT_EQ(Encoded(SomeSuperblock()), Encoded(SomeSuperblock()));
}

TEST(Superblock, EveryFlippedBitIsRefused) {
  std::vector<std::byte> page = Encoded(SomeSuperblock());
  for (size_t bit = 0; bit < kPageBytes * 8; ++bit) {
    const std::byte mask = std::byte{1} << (bit % 8);
    page[bit / 8] ^= mask;
    ASSERT_FALSE(DecodeSuperblock(page).ok()) << "bit " << bit;
    page[bit / 8] ^= mask;
  }
}

TEST(Superblock, TellsForeignFilesOtherVersionsAndDamageApart) {
  const std::vector<std::byte> zeros(kPageBytes);
  EXPECT_EQ(DecodeSuperblock(zeros).status().code(), absl::StatusCode::kNotFound);

  std::vector<std::byte> page = Encoded(SomeSuperblock());
  page[kPageBytes - 1] ^= std::byte{1};
  EXPECT_EQ(DecodeSuperblock(page).status().code(), absl::StatusCode::kDataLoss);

  page = Encoded(SomeSuperblock());
  const uint32_t version = kNvmeFormatVersion + 1;
  std::memcpy(page.data() + 16, &version, sizeof(version));
  EXPECT_EQ(DecodeSuperblock(page).status().code(), absl::StatusCode::kDataLoss);
  const uint64_t checksum = Checksum64(absl::MakeConstSpan(page).subspan(sizeof(uint64_t)));
  std::memcpy(page.data(), &checksum, sizeof(checksum));
  const absl::Status status = DecodeSuperblock(page).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), "format version 2")) << status;
}

// --- Group header ---

// A group of random blocks together with its header.
struct SomeGroup {
  SomeGroup(const NvmeGeometry& geometry_in, uint32_t blocks, uint64_t seed)
      : geometry(geometry_in),
        checksums(size_t{blocks} * geometry.pages_per_block),
        header(size_t{geometry.header_pages} * kPageBytes, std::byte{0xee}) {
    std::mt19937_64 random(seed);
    for (PageChecksum& checksum : checksums) checksum = static_cast<PageChecksum>(random());
    for (uint32_t i = 0; i < blocks; ++i) {
      records.push_back({.id = {random(), random()},
                         .valid = random() % 4 != 0,
                         .retention = random() % 2 == 0 ? Retention::kOwned : Retention::kCached,
                         .checksums = absl::MakeConstSpan(checksums).subspan(
                             size_t{i} * geometry.pages_per_block, geometry.pages_per_block)});
      if (!records.back().valid) records.back().checksums = {};  // nobody has any
    }
    group = {.epoch = 9, .generation = 77, .base_page = 1234, .block_count = blocks};
    EncodeGroupHeader(geometry, group, records, absl::MakeSpan(header));
  }
  std::optional<GroupView> Decode(uint64_t epoch = 9, uint32_t base_page = 1234) const {
    return GroupView::Decode(geometry, epoch, base_page, header);
  }

  const NvmeGeometry geometry;
  std::vector<PageChecksum> checksums;
  std::vector<GroupRecord> records;
  GroupHeader group;
  std::vector<std::byte> header;
};

TEST(GroupHeader, ComesBackAsItWasWrittenForEveryBlockSize) {
  for (size_t block_bytes :
       {kPageBytes, size_t{12} << 10, size_t{64} << 10, 1 * kMiB, 16 * kMiB, 64 * kMiB}) {
    const NvmeGeometry geometry = *PlanNvmeGeometry(uint64_t{16} << 30, block_bytes);
    for (uint32_t blocks : {1u, (geometry.group_blocks + 1) / 2, geometry.group_blocks}) {
      SCOPED_TRACE(testing::Message() << block_bytes << " bytes, " << blocks << " blocks");
      const SomeGroup some(geometry, blocks, /*seed=*/block_bytes + blocks);
      const std::optional<GroupView> view = some.Decode();
      ASSERT_TRUE(view.has_value());
      EXPECT_EQ(view->group().generation, 77u);
      EXPECT_EQ(view->group().epoch, 9u);
      EXPECT_EQ(view->group().base_page, 1234u);
      ASSERT_EQ(view->group().block_count, blocks);
      for (uint32_t i = 0; i < blocks; ++i) {
        const GroupRecord record = view->record(i);
        EXPECT_EQ(record.id, some.records[i].id);
        EXPECT_EQ(record.valid, some.records[i].valid);
        EXPECT_EQ(record.retention, some.records[i].retention);
        if (!record.valid) continue;
        EXPECT_EQ(record.checksums, some.records[i].checksums);
      }
    }
  }
}

TEST(GroupHeader, OfALargeBlockSpansPages) {
  EXPECT_GT(PlanNvmeGeometry(uint64_t{16} << 30, 16 * kMiB)->header_pages, 1u);
}

TEST(GroupHeader, EveryFlippedBitOfAPageIsRefused) {
  const NvmeGeometry geometry = *PlanNvmeGeometry(64 * kMiB, 64 << 10);
  SomeGroup some(geometry, 2, /*seed=*/3);
  for (size_t bit = 0; bit < some.header.size() * 8; ++bit) {
    const std::byte mask = std::byte{1} << (bit % 8);
    some.header[bit / 8] ^= mask;
    ASSERT_FALSE(some.Decode().has_value()) << "bit " << bit;
    some.header[bit / 8] ^= mask;
  }
  EXPECT_TRUE(some.Decode().has_value());
}

TEST(GroupHeader, FlippedBitsOfEveryPageAreRefused) {
  const NvmeGeometry geometry = *PlanNvmeGeometry(uint64_t{16} << 30, 16 * kMiB);
  SomeGroup some(geometry, 1, /*seed=*/4);
  // Every byte of every page, one bit each.
  for (size_t byte = 0; byte < some.header.size(); ++byte) {
    const std::byte mask = std::byte{1} << (byte % 8);
    some.header[byte] ^= mask;
    ASSERT_FALSE(some.Decode().has_value()) << "byte " << byte;
    some.header[byte] ^= mask;
  }
}

TEST(GroupHeader, OfWhichOnePageWasNotWrittenIsRefused) {
  const NvmeGeometry geometry = *PlanNvmeGeometry(uint64_t{16} << 30, 16 * kMiB);
  for (uint32_t page = 0; page < geometry.header_pages; ++page) {
    SomeGroup some(geometry, 1, /*seed=*/5);
    std::memset(some.header.data() + page * kPageBytes, 0, kPageBytes);
    EXPECT_FALSE(some.Decode().has_value()) << "page " << page;
  }
}

TEST(GroupHeader, OfAnotherTierOrPlaceIsRefused) {
  const NvmeGeometry geometry = *PlanNvmeGeometry(64 * kMiB, 64 << 10);
  const SomeGroup some(geometry, 2, /*seed=*/6);
  EXPECT_TRUE(some.Decode(9, 1234).has_value());
  EXPECT_FALSE(some.Decode(10, 1234).has_value());
  EXPECT_FALSE(some.Decode(9, 1235).has_value());
  NvmeGeometry other = geometry;
  other.pages_per_block *= 2;
  EXPECT_FALSE(GroupView::Decode(other, 9, 1234, some.header).has_value());
  EXPECT_FALSE(GroupView::Decode(geometry, 9, 1234, std::vector<std::byte>(kPageBytes)));
}

}  // namespace
}  // namespace terrace
