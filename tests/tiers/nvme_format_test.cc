#include "tiers/nvme_format.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr uint64_t kEpoch = 9;
constexpr SegmentIndex kSegment{1};

// Checks that no bit of `bytes` can change without `refused` saying so.
template <typename Refused>
void ExpectEveryBitCounts(absl::Span<std::byte> bytes, Refused refused) {
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    const std::byte mask = std::byte{1} << (bit % 8);
    bytes[bit / 8] ^= mask;
    ASSERT_TRUE(refused()) << "bit " << bit;
    bytes[bit / 8] ^= mask;
  }
}

// Makes the checksum of a record fit what it holds now.
void Restamp(absl::Span<std::byte> record) {
  const uint64_t checksum = Checksum64(record.subspan(sizeof(uint64_t)));
  std::memcpy(record.data(), &checksum, sizeof(checksum));
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
  ExpectEveryBitCounts(absl::MakeSpan(page), [&] { return !DecodeSuperblock(page).ok(); });
}

TEST(Superblock, TellsForeignFilesOtherVersionsAndDamageApart) {
  const std::vector<std::byte> zeros(kPageBytes);
  EXPECT_EQ(DecodeSuperblock(zeros).status().code(), absl::StatusCode::kNotFound);

  std::vector<std::byte> page = Encoded(SomeSuperblock());
  page[kPageBytes - 1] ^= std::byte{1};
  EXPECT_EQ(DecodeSuperblock(page).status().code(), absl::StatusCode::kDataLoss);

  page = Encoded(SomeSuperblock());
  const uint32_t version = kNvmeFormatVersion + 1;
  std::memcpy(page.data() + 24, &version, sizeof(version));
  EXPECT_EQ(DecodeSuperblock(page).status().code(), absl::StatusCode::kDataLoss);
  Restamp(absl::MakeSpan(page));
  const absl::Status status = DecodeSuperblock(page).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), "format version")) << status;
}

TEST(Superblock, OfVersion1IsAnotherFormatVersionWhateverItHolds) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> page(kPageBytes);
    std::memcpy(page.data() + 8, "TERRACE1", 8);
    const uint32_t head[] = {1, kPageBytes};
    std::memcpy(page.data() + 16, head, sizeof(head));
    const uint64_t rest[] = {(1 + random() % 1024) * kPageBytes, random(), random(), random()};
    std::memcpy(page.data() + 24, rest, sizeof(rest));
    Restamp(absl::MakeSpan(page));
    EXPECT_EQ(DecodeSuperblock(page).status().code(), absl::StatusCode::kInvalidArgument)
        << "seed " << seed;
  }
}

TEST(Superblock, ThatContradictsItselfIsDamaged) {
  // Its page size, its block size, and each number of its geometry.
  for (const size_t at : {28, 32, 48, 52, 56, 60, 64, 68}) {
    std::vector<std::byte> page = Encoded(SomeSuperblock());
    uint32_t number = 0;
    std::memcpy(&number, &page[at], sizeof(number));
    number = at == 48 || at == 52 ? 1 : number + 1;  // of segments, many numbers are possible
    std::memcpy(&page[at], &number, sizeof(number));
    Restamp(absl::MakeSpan(page));
    EXPECT_EQ(DecodeSuperblock(page).status().code(), absl::StatusCode::kDataLoss) << "byte " << at;
  }
}

// --- Group headers ---

// A group of random blocks together with its header.
struct SomeGroup {
  SomeGroup(const NvmeGeometry& geometry_in, uint32_t blocks, uint64_t seed, uint32_t at = 0)
      : geometry(geometry_in),
        checksums(size_t{blocks} * geometry.pages_per_block),
        header(size_t{geometry.header_pages} * kPageBytes, std::byte{0xee}) {
    std::mt19937_64 random(seed);
    for (PageChecksum& checksum : checksums) checksum = static_cast<PageChecksum>(random());
    for (uint32_t i = 0; i < blocks; ++i) {
      GroupRecord record = {.id = {random(), random()},
                            .valid = random() % 4 != 0,
                            .retention = random() % 2 == 0 ? Retention::kOwned : Retention::kCached,
                            .key = std::nullopt,
                            .seal = {},
                            .checksums = absl::MakeConstSpan(checksums).subspan(
                                size_t{i} * geometry.pages_per_block, geometry.pages_per_block)};
      if (!record.valid) record.checksums = {};  // nobody has any
      if (random() % 2 == 0) {
        record.key = KeyName{random(), random()};
        for (std::byte& byte : record.seal.nonce) byte = static_cast<std::byte>(random());
        for (std::byte& byte : record.seal.tag) byte = static_cast<std::byte>(random());
      }
      records.push_back(record);
    }
    group = {.epoch = kEpoch,
             .generation = 77 + at,
             .segment_generation = 70,
             .base_page = static_cast<uint32_t>(geometry.SegmentPage(kSegment)) + at,
             .block_count = blocks,
             .stamp = random(),
             .previous_stamp = random()};
    EncodeGroupHeader(geometry, group, records, absl::MakeSpan(header));
  }
  std::optional<GroupView> Decode(uint64_t epoch = kEpoch) const {
    return GroupView::Decode(geometry, epoch, header);
  }
  // What the checksum is of, and itself.
  absl::Span<std::byte> Stamped() {
    return absl::MakeSpan(header).first(GroupHeaderBytes(geometry, group.block_count));
  }

  const NvmeGeometry geometry;
  std::vector<PageChecksum> checksums;
  std::vector<GroupRecord> records;
  GroupHeader group;
  std::vector<std::byte> header;
};

void ExpectSameRecord(const GroupRecord& read, const GroupRecord& written) {
  EXPECT_EQ(read.valid, written.valid);
  if (!written.valid) return;
  EXPECT_EQ(read.id, written.id);
  EXPECT_EQ(read.retention, written.retention);
  EXPECT_EQ(read.key, written.key);
  EXPECT_EQ(read.seal.nonce, written.seal.nonce);
  EXPECT_EQ(read.seal.tag, written.seal.tag);
  EXPECT_EQ(read.checksums, written.checksums);
}

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
      EXPECT_EQ(view->group().segment_generation, 70u);
      EXPECT_EQ(view->group().epoch, kEpoch);
      EXPECT_EQ(view->group().stamp, some.group.stamp);
      EXPECT_EQ(view->group().previous_stamp, some.group.previous_stamp);
      EXPECT_EQ(view->group().base_page, geometry.SegmentPage(kSegment));
      EXPECT_EQ(view->bytes().size(), GroupHeaderBytes(geometry, blocks));
      ASSERT_EQ(view->group().block_count, blocks);
      for (uint32_t i = 0; i < blocks; ++i) {
        ExpectSameRecord(view->record(i), some.records[i]);
        EXPECT_EQ(view->block_page(geometry, i),
                  some.group.base_page + geometry.header_pages + i * geometry.pages_per_block);
      }
    }
  }
}

TEST(GroupHeader, OfALargeBlockSpansPages) {
  EXPECT_GT(PlanNvmeGeometry(uint64_t{16} << 30, 16 * kMiB)->header_pages, 1u);
}

TEST(GroupHeader, NeedsNoPaddingToBeDecoded) {
  SomeGroup some(*PlanNvmeGeometry(64 * kMiB, 64 << 10), 2, /*seed=*/2);
  EXPECT_TRUE(GroupView::Decode(some.geometry, kEpoch, some.Stamped()).has_value());
}

TEST(GroupHeader, EveryFlippedBitIsRefused) {
  SomeGroup some(*PlanNvmeGeometry(64 * kMiB, 64 << 10), 2, /*seed=*/3);
  ExpectEveryBitCounts(some.Stamped(), [&] { return !some.Decode().has_value(); });
  EXPECT_TRUE(some.Decode().has_value());
}

TEST(GroupHeader, FlippedBitsOfEveryPageAreRefused) {
  SomeGroup some(*PlanNvmeGeometry(uint64_t{16} << 30, 16 * kMiB), 1, /*seed=*/4);
  // Every byte of every page, one bit each.
  const absl::Span<std::byte> bytes = some.Stamped();
  EXPECT_GT(bytes.size(), 2 * kPageBytes);
  for (size_t byte = 0; byte < bytes.size(); ++byte) {
    const std::byte mask = std::byte{1} << (byte % 8);
    bytes[byte] ^= mask;
    ASSERT_FALSE(some.Decode().has_value()) << "byte " << byte;
    bytes[byte] ^= mask;
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

TEST(GroupHeader, CutShortAnywhereIsRefused) {
  SomeGroup some(*PlanNvmeGeometry(64 * kMiB, 64 << 10), 2, /*seed=*/6);
  const absl::Span<const std::byte> whole = some.Stamped();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    ASSERT_FALSE(GroupView::Decode(some.geometry, kEpoch, whole.first(bytes))) << bytes;
  }
}

TEST(GroupHeader, OfAnotherTierIsRefused) {
  const NvmeGeometry geometry = *PlanNvmeGeometry(64 * kMiB, 64 << 10);
  const SomeGroup some(geometry, 2, /*seed=*/7);
  EXPECT_TRUE(some.Decode(kEpoch).has_value());
  EXPECT_FALSE(some.Decode(kEpoch + 1).has_value());
  NvmeGeometry other = geometry;
  other.pages_per_block *= 2;
  EXPECT_FALSE(GroupView::Decode(other, kEpoch, some.header).has_value());
  EXPECT_FALSE(GroupView::Decode(geometry, kEpoch, std::vector<std::byte>(kPageBytes)));
}

TEST(GroupHeader, ThatCannotLieWhereItSaysIsRefusedInSpiteOfItsChecksum) {
  const NvmeGeometry geometry = *PlanNvmeGeometry(64 * kMiB, 64 << 10);
  const uint32_t start = static_cast<uint32_t>(geometry.SegmentPage(kSegment));
  const uint32_t log_start = static_cast<uint32_t>(geometry.log_start());
  const uint32_t footer = static_cast<uint32_t>(geometry.FooterPage(kSegment));
  const uint32_t end = static_cast<uint32_t>(geometry.total_pages());
  const struct {
    const char* what;
    uint32_t base_page;
    bool possible;
  } places[] = {{"where it was", start, true},
                {"the first of the log", log_start, true},
                {"in the manifest", log_start - 1, false},
                {"up to the footer", footer - geometry.group_pages(2), true},
                {"into the footer", footer - geometry.group_pages(2) + 1, false},
                {"in a footer", footer, false},
                {"beyond the end", end, false},
                {"far beyond the end", UINT32_MAX, false}};
  for (const auto& place : places) {
    SomeGroup some(geometry, 2, /*seed=*/8);
    std::memcpy(some.header.data() + 40, &place.base_page, sizeof(place.base_page));
    Restamp(some.Stamped());
    EXPECT_EQ(some.Decode().has_value(), place.possible) << place.what;
  }
}

TEST(GroupHeader, ThatIsOlderThanTheUseOfItsSegmentIsRefused) {
  SomeGroup some(*PlanNvmeGeometry(64 * kMiB, 64 << 10), 1, /*seed=*/9);
  const uint64_t use = some.group.generation + 1;
  std::memcpy(some.header.data() + 32, &use, sizeof(use));
  Restamp(some.Stamped());
  EXPECT_FALSE(some.Decode().has_value());
}

}  // namespace
}  // namespace terrace
