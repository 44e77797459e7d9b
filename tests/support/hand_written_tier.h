#ifndef TERRACE_TESTS_SUPPORT_HAND_WRITTEN_TIER_H_
#define TERRACE_TESTS_SUPPORT_HAND_WRITTEN_TIER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "io/memory_device.h"
#include "tiers/nvme_format.h"
#include "tiers/nvme_survey.h"

namespace terrace {

struct HandBlock {
  uint64_t number = 0;
  Retention retention = Retention::kCached;
  bool valid = true;
  std::optional<KeyName> key = std::nullopt;
};

struct HandGroup {
  uint32_t segment = 0;
  uint32_t at = 0;  // in pages from the start of the segment
  uint64_t generation = 0;
  uint64_t use = 0;  // the generation of the first group in this use of the segment
  std::vector<HandBlock> blocks;
  // Its own stamp, and that of the group before it. By default the generations of both, where the
  // group before it is the last one in front of it that was written in this use of the segment.
  std::optional<uint64_t> stamp = std::nullopt;
  std::optional<uint64_t> previous_stamp = std::nullopt;
};

// An NVMe tier that a test writes record by record, on a device of its own. Thread-compatible.
class HandWrittenTier {
 public:
  HandWrittenTier(const NvmeGeometry& geometry, uint64_t epoch);

  static BlockId Id(uint64_t number) { return {.high = ~number, .low = number}; }

  const NvmeGeometry& geometry() const { return geometry_; }
  uint64_t epoch() const { return epoch_; }
  MemoryDevice& device() { return *device_; }
  // Reads of the device that end well.
  NvmeReader Reader();
  absl::Span<std::byte> Pages(uint64_t page, uint32_t count) {
    return device_->bytes().subspan(page * kPageBytes, count * kPageBytes);
  }
  uint32_t Start(uint32_t segment) const {
    return static_cast<uint32_t>(geometry_.SegmentPage(SegmentIndex{segment}));
  }

  // Writes header and blocks; the bytes of a block follow from its number and the generation.
  void Write(const HandGroup& group);
  // The header of a group that was written, without its padding.
  absl::Span<std::byte> Header(const HandGroup& group);
  absl::Span<std::byte> Block(const HandGroup& group, uint32_t index);
  // The checksum of a block's first page.
  PageChecksum FirstChecksum(const HandGroup& group, uint32_t index);
  // Writes the groups of one use of a segment, and its footer.
  void Seal(const std::vector<HandGroup>& groups);
  absl::Span<std::byte> Footer(uint32_t segment) {
    return Pages(geometry_.FooterPage(SegmentIndex{segment}), geometry_.footer_pages);
  }

  // A record without marks.
  ManifestRecord Record(uint32_t segment, uint64_t use, uint64_t version) const;
  void WriteManifest(const ManifestRecord& record, uint32_t copy);
  absl::Span<std::byte> Manifest(uint32_t segment, uint32_t copy) {
    return Pages(geometry_.ManifestPage(SegmentIndex{segment}, copy), geometry_.manifest_pages);
  }
  // What a survey of the segment finds.
  SegmentSurvey SurveyOf(uint32_t segment);

 private:
  const NvmeGeometry geometry_;
  const uint64_t epoch_;
  const std::unique_ptr<MemoryDevice> device_;
  std::map<std::array<uint64_t, 3>, uint64_t> stamps_;  // of groups, by segment, use and place
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_HAND_WRITTEN_TIER_H_
