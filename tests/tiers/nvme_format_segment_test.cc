// What is written about a segment besides its groups: footers and manifest records.

#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tiers/nvme_format.h"

namespace terrace {
namespace {

constexpr uint64_t kEpoch = 9;
constexpr uint64_t kUse = 70;
constexpr SegmentIndex kSegment{1};

NvmeGeometry SomeGeometry() { return *PlanNvmeGeometry(uint64_t{64} << 20, 64 << 10); }

// Makes the checksum of a record fit what it holds now.
void Restamp(absl::Span<std::byte> record) {
  const uint64_t checksum = Checksum64(record.subspan(sizeof(uint64_t)));
  std::memcpy(record.data(), &checksum, sizeof(checksum));
}

// --- Footers ---

struct GroupPlan {
  uint32_t at = 0;  // in pages from the start of the segment
  uint32_t blocks = 1;
  uint64_t segment_generation = kUse;
  SegmentIndex segment = kSegment;
};

// A footer of groups without valid blocks.
struct SomeFooter {
  SomeFooter(const NvmeGeometry& geometry_in, const std::vector<GroupPlan>& groups)
      : geometry(geometry_in), bytes(size_t{geometry.footer_pages} * kPageBytes, std::byte{0xee}) {
    std::vector<std::byte> header(size_t{geometry.header_pages} * kPageBytes);
    for (const GroupPlan& plan : groups) {
      GroupRecord none;
      none.valid = false;
      EncodeGroupHeader(
          geometry,
          {.epoch = kEpoch,
           .generation = kUse + 1000 + plan.at,
           .segment_generation = plan.segment_generation,
           .base_page = static_cast<uint32_t>(geometry.SegmentPage(plan.segment)) + plan.at,
           .block_count = plan.blocks},
          std::vector<GroupRecord>(plan.blocks, none), absl::MakeSpan(header));
      headers.insert(headers.end(), header.begin(),
                     header.begin() + GroupHeaderBytes(geometry, plan.blocks));
      footer.used_pages = plan.at + geometry.group_pages(plan.blocks);
    }
    footer.epoch = kEpoch;
    footer.segment_generation = kUse;
    footer.segment = kSegment;
    footer.group_count = static_cast<uint32_t>(groups.size());
    Encode();
  }
  void Encode() { EncodeFooter(geometry, footer, headers, absl::MakeSpan(bytes)); }
  std::optional<FooterView> Decode(uint64_t epoch = kEpoch, SegmentIndex segment = kSegment) const {
    return DecodeFooter(geometry, epoch, segment, bytes);
  }
  size_t stamped_bytes() const {
    return MaxFooterBytes(1, 1, 1, /*data_pages=*/0) + headers.size();
  }

  const NvmeGeometry geometry;
  std::vector<std::byte> headers;
  FooterHeader footer;
  std::vector<std::byte> bytes;
};

SomeFooter FooterOfThree() {
  const NvmeGeometry geometry = SomeGeometry();
  // Not every page belongs to a group that could be read.
  const uint32_t second = geometry.group_pages(2);
  const uint32_t third = second + geometry.group_pages(1) + 3;
  return SomeFooter(geometry, {{.at = 0, .blocks = 2}, {.at = second}, {.at = third, .blocks = 3}});
}

TEST(Footer, ComesBackAsItWasWritten) {
  const SomeFooter some = FooterOfThree();
  const std::optional<FooterView> view = some.Decode();
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->footer.epoch, kEpoch);
  EXPECT_EQ(view->footer.segment_generation, kUse);
  EXPECT_EQ(view->footer.segment, kSegment);
  EXPECT_EQ(view->footer.group_count, 3u);
  EXPECT_EQ(view->footer.used_pages, some.footer.used_pages);
  ASSERT_EQ(view->groups.size(), 3u);
  EXPECT_EQ(view->groups[0].group().base_page, some.geometry.SegmentPage(kSegment));
  EXPECT_EQ(view->groups[0].group().block_count, 2u);
  EXPECT_EQ(view->groups[2].group().block_count, 3u);
}

TEST(Footer, OfASegmentWithoutGroupsIsWhole) {
  const SomeFooter some(SomeGeometry(), {});
  const std::optional<FooterView> view = some.Decode();
  ASSERT_TRUE(view.has_value());
  EXPECT_TRUE(view->groups.empty());
}

TEST(Footer, HoldsAllGroupsThatASegmentCan) {
  const NvmeGeometry geometry = SomeGeometry();
  for (const uint32_t blocks : {1u, geometry.group_blocks}) {
    std::vector<GroupPlan> groups;
    const uint32_t pages = geometry.group_pages(blocks);
    for (uint32_t at = 0; at + pages <= geometry.data_pages(); at += pages) {
      groups.push_back({.at = at, .blocks = blocks});
    }
    const SomeFooter some(geometry, groups);
    const std::optional<FooterView> view = some.Decode();
    ASSERT_TRUE(view.has_value());
    EXPECT_EQ(view->groups.size(), groups.size());
  }
}

TEST(Footer, EveryFlippedBitIsRefused) {
  SomeFooter some = FooterOfThree();
  for (size_t bit = 0; bit < some.stamped_bytes() * 8; ++bit) {
    const std::byte mask = std::byte{1} << (bit % 8);
    some.bytes[bit / 8] ^= mask;
    ASSERT_FALSE(some.Decode().has_value()) << "bit " << bit;
    some.bytes[bit / 8] ^= mask;
  }
  EXPECT_TRUE(some.Decode().has_value());
}

TEST(Footer, CutShortAnywhereIsRefused) {
  const SomeFooter some = FooterOfThree();
  const absl::Span<const std::byte> whole = absl::MakeConstSpan(some.bytes);
  for (size_t bytes = 0; bytes < some.stamped_bytes(); ++bytes) {
    ASSERT_FALSE(DecodeFooter(some.geometry, kEpoch, kSegment, whole.first(bytes))) << bytes;
  }
  EXPECT_TRUE(DecodeFooter(some.geometry, kEpoch, kSegment, whole.first(some.stamped_bytes())));
}

TEST(Footer, OfAnotherTierOrSegmentIsRefused) {
  const SomeFooter some = FooterOfThree();
  EXPECT_TRUE(some.Decode(kEpoch, kSegment).has_value());
  EXPECT_FALSE(some.Decode(kEpoch + 1, kSegment).has_value());
  EXPECT_FALSE(some.Decode(kEpoch, SegmentIndex{2}).has_value());
}

TEST(Footer, WhoseHeadersAreOfAnotherUseOrSegmentOrOverlapIsRefused) {
  const NvmeGeometry geometry = SomeGeometry();
  const uint32_t second = geometry.group_pages(1);
  EXPECT_TRUE(SomeFooter(geometry, {{.at = 0}, {.at = second}}).Decode());
  EXPECT_FALSE(
      SomeFooter(geometry, {{.at = 0}, {.at = second, .segment_generation = kUse - 1}}).Decode());
  EXPECT_FALSE(
      SomeFooter(geometry, {{.at = 0}, {.at = second, .segment = SegmentIndex{2}}}).Decode());
  EXPECT_FALSE(
      SomeFooter(geometry, {{.at = 0, .segment = SegmentIndex{0}}, {.at = second}}).Decode());
  EXPECT_FALSE(SomeFooter(geometry, {{.at = 0}, {.at = second - 1}}).Decode());
  EXPECT_FALSE(SomeFooter(geometry, {{.at = second}, {.at = 0}}).Decode());
}

TEST(Footer, ThatContradictsItselfIsRefused) {
  SomeFooter some = FooterOfThree();
  const FooterHeader right = some.footer;
  for (const int change : {-1, 1}) {
    some.footer = right;
    some.footer.group_count += change;
    some.Encode();
    EXPECT_FALSE(some.Decode()) << "groups " << change;
  }
  some.footer = right;
  some.footer.used_pages -= 1;
  some.Encode();
  EXPECT_FALSE(some.Decode()) << "a group beyond the used pages";
  some.footer.used_pages = some.geometry.data_pages() + 1;
  some.Encode();
  EXPECT_FALSE(some.Decode()) << "more pages than there are";
  some.footer.used_pages = some.geometry.data_pages();
  some.Encode();
  EXPECT_TRUE(some.Decode());
}

// --- Manifest records ---

struct SomeRecord {
  explicit SomeRecord(uint64_t seed)
      : geometry(SomeGeometry()),
        bytes(size_t{geometry.manifest_pages} * kPageBytes, std::byte{0xee}) {
    std::mt19937_64 random(seed);
    record.epoch = kEpoch;
    record.segment_generation = kUse;
    record.version = 12;
    record.segment = kSegment;
    record.freed = seed % 2 == 0;
    record.durable_pages = geometry.data_pages() / 2;
    record.newest_generation = kUse + seed;
    for (uint32_t i = 0; i < geometry.stretches(); ++i) {
      record.dead.push_back(random() % 3 == 0);
      record.reversed.push_back(random() % 3 == 0);
    }
    EncodeManifestRecord(geometry, record, absl::MakeSpan(bytes));
  }
  std::optional<ManifestRecord> Decode(uint64_t epoch = kEpoch,
                                       SegmentIndex segment = kSegment) const {
    return DecodeManifestRecord(geometry, epoch, segment, bytes);
  }
  absl::Span<std::byte> Stamped() {
    return absl::MakeSpan(bytes).first(ManifestRecordBytes(geometry.stretches()));
  }

  const NvmeGeometry geometry;
  ManifestRecord record;
  std::vector<std::byte> bytes;
};

TEST(ManifestRecord, ComesBackAsItWasWritten) {
  for (const uint64_t seed : {1, 2, 3, 4}) {
    const SomeRecord some(seed);
    const std::optional<ManifestRecord> read = some.Decode();
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(read->epoch, kEpoch);
    EXPECT_EQ(read->segment_generation, kUse);
    EXPECT_EQ(read->version, 12u);
    EXPECT_EQ(read->segment, kSegment);
    EXPECT_EQ(read->freed, some.record.freed);
    EXPECT_EQ(read->durable_pages, some.record.durable_pages);
    EXPECT_EQ(read->newest_generation, some.record.newest_generation);
    EXPECT_EQ(read->dead, some.record.dead);
    EXPECT_EQ(read->reversed, some.record.reversed);
  }
}

TEST(ManifestRecord, EveryFlippedBitIsRefused) {
  SomeRecord some(5);
  const absl::Span<std::byte> bytes = some.Stamped();
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    const std::byte mask = std::byte{1} << (bit % 8);
    bytes[bit / 8] ^= mask;
    ASSERT_FALSE(some.Decode().has_value()) << "bit " << bit;
    bytes[bit / 8] ^= mask;
  }
  EXPECT_TRUE(some.Decode().has_value());
}

TEST(ManifestRecord, CutShortAnywhereIsRefused) {
  SomeRecord some(6);
  const absl::Span<const std::byte> whole = some.Stamped();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    ASSERT_FALSE(DecodeManifestRecord(some.geometry, kEpoch, kSegment, whole.first(bytes)))
        << bytes;
  }
  EXPECT_TRUE(DecodeManifestRecord(some.geometry, kEpoch, kSegment, whole));
}

TEST(ManifestRecord, OfAnotherTierOrSegmentIsRefused) {
  const SomeRecord some(7);
  EXPECT_TRUE(some.Decode(kEpoch, kSegment).has_value());
  EXPECT_FALSE(some.Decode(kEpoch + 1, kSegment).has_value());
  EXPECT_FALSE(some.Decode(kEpoch, SegmentIndex{0}).has_value());
}

TEST(ManifestRecord, ThatContradictsTheGeometryIsRefusedInSpiteOfItsChecksum) {
  for (const size_t at : {48, 52}) {  // durable pages, stretches
    SomeRecord some(8);
    const uint32_t number = some.geometry.segment_pages;
    std::memcpy(&some.bytes[at], &number, sizeof(number));
    Restamp(some.Stamped());
    EXPECT_FALSE(some.Decode().has_value()) << "byte " << at;
  }
}

}  // namespace
}  // namespace terrace
