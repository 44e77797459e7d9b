#include "tests/support/hand_written_tier.h"

#include <cstring>
#include <iterator>
#include <random>

#include "io/check.h"

namespace terrace {

HandWrittenTier::HandWrittenTier(const NvmeGeometry& geometry, uint64_t epoch)
    : geometry_(geometry),
      epoch_(epoch),
      device_(*MemoryDevice::Create(
          {.size_bytes = geometry.total_bytes(), .depth = 64, .transfer_hook = {}})) {}

NvmeReader HandWrittenTier::Reader() {
  return NvmeReader(
      [this](absl::Span<IoRequest* const> batch) { return RunBatch(*device_, batch); });
}

void HandWrittenTier::Write(const HandGroup& group) {
  const uint32_t base = Start(group.segment) + group.at;
  const uint32_t pages = geometry_.pages_per_block;
  std::vector<PageChecksum> checksums(group.blocks.size() * pages);
  std::vector<GroupRecord> records;
  for (size_t i = 0; i < group.blocks.size(); ++i) {
    const HandBlock& block = group.blocks[i];
    std::mt19937_64 random(block.number * 1000003 + group.generation);
    const absl::Span<std::byte> bytes = Block(group, static_cast<uint32_t>(i));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    const absl::Span<PageChecksum> made = absl::MakeSpan(checksums).subspan(i * pages, pages);
    ChecksumPages(bytes, made);
    GroupRecord record;
    record.id = Id(block.number);
    record.valid = block.valid;
    record.retention = block.retention;
    record.key = block.key;
    record.checksums = made;
    records.push_back(record);
  }
  const uint64_t stamp = group.stamp.value_or(group.generation);
  const auto at = stamps_.insert_or_assign({group.segment, group.use, group.at}, stamp).first;
  uint64_t before = 0;
  if (at != stamps_.begin() && std::prev(at)->first[0] == group.segment &&
      std::prev(at)->first[1] == group.use) {
    before = std::prev(at)->second;
  }
  EncodeGroupHeader(geometry_,
                    {.epoch = epoch_,
                     .generation = group.generation,
                     .segment_generation = group.use,
                     .base_page = base,
                     .block_count = static_cast<uint32_t>(group.blocks.size()),
                     .stamp = stamp,
                     .previous_stamp = group.previous_stamp.value_or(before)},
                    records, Pages(base, geometry_.header_pages));
}

absl::Span<std::byte> HandWrittenTier::Header(const HandGroup& group) {
  return Pages(Start(group.segment) + group.at, geometry_.header_pages)
      .first(GroupHeaderBytes(geometry_, static_cast<uint32_t>(group.blocks.size())));
}

absl::Span<std::byte> HandWrittenTier::Block(const HandGroup& group, uint32_t index) {
  return Pages(Start(group.segment) + group.at + geometry_.group_pages(index),
               geometry_.pages_per_block);
}

PageChecksum HandWrittenTier::FirstChecksum(const HandGroup& group, uint32_t index) {
  PageChecksum checksum = 0;
  ChecksumPages(Block(group, index).first(kPageBytes), absl::MakeSpan(&checksum, 1));
  return checksum;
}

void HandWrittenTier::Seal(const std::vector<HandGroup>& groups) {
  TERRACE_CHECK(!groups.empty());
  std::vector<std::byte> headers;
  for (const HandGroup& group : groups) {
    Write(group);
    const absl::Span<std::byte> header = Header(group);
    headers.insert(headers.end(), header.begin(), header.end());
  }
  const HandGroup& last = groups.back();
  EncodeFooter(
      geometry_,
      {.epoch = epoch_,
       .segment_generation = last.use,
       .segment = SegmentIndex{last.segment},
       .group_count = static_cast<uint32_t>(groups.size()),
       .used_pages = last.at + geometry_.group_pages(static_cast<uint32_t>(last.blocks.size()))},
      headers, Footer(last.segment));
}

ManifestRecord HandWrittenTier::Record(uint32_t segment, uint64_t use, uint64_t version) const {
  ManifestRecord record;
  record.epoch = epoch_;
  record.segment_generation = use;
  record.version = version;
  record.segment = SegmentIndex{segment};
  record.newest_generation = use + 1000;  // all groups that tests write
  record.dead.resize(geometry_.stretches());
  record.reversed.resize(geometry_.stretches());
  return record;
}

void HandWrittenTier::WriteManifest(const ManifestRecord& record, uint32_t copy) {
  EncodeManifestRecord(geometry_, record, Manifest(static_cast<uint32_t>(record.segment), copy));
}

SegmentSurvey HandWrittenTier::SurveyOf(uint32_t segment) {
  SegmentBytes bytes;
  for (uint32_t copy = 0; copy < kManifestCopies; ++copy) {
    bytes.manifest[copy] = Manifest(segment, copy);
  }
  bytes.header = Pages(Start(segment), geometry_.header_pages);
  bytes.footer = Footer(segment);
  return Survey(geometry_, epoch_, SegmentIndex{segment}, bytes);
}

}  // namespace terrace
