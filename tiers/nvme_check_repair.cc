#include "tiers/nvme_check_repair.h"

#include <algorithm>
#include <utility>

#include "io/aligned_buffer.h"

namespace terrace {
namespace {

RepairWrite BlankWrite(uint64_t page, uint32_t count) {
  RepairWrite write;
  write.page = page;
  write.bytes.resize(size_t{count} * kPageBytes);
  return write;
}

void PlanHeaders(const NvmeGeometry& geometry, const SegmentGroups& groups,
                 std::vector<RepairWrite>& writes) {
  for (const size_t index : groups.damaged_headers) {
    const GroupView& group = groups.groups[index];
    RepairWrite write = BlankWrite(group.group().base_page, geometry.header_pages);
    std::copy(group.bytes().begin(), group.bytes().end(), write.bytes.begin());
    writes.push_back(std::move(write));
  }
}

void PlanFooter(const NvmeGeometry& geometry, uint64_t epoch, const SegmentSurvey& survey,
                const SegmentGroups& groups, std::vector<RepairWrite>& writes) {
  std::vector<std::byte> headers;
  for (const GroupView& group : groups.groups) {
    headers.insert(headers.end(), group.bytes().begin(), group.bytes().end());
  }
  RepairWrite write = BlankWrite(geometry.FooterPage(survey.segment), geometry.footer_pages);
  EncodeFooter(geometry,
               {.epoch = epoch,
                .segment_generation = survey.generation,
                .segment = survey.segment,
                .group_count = static_cast<uint32_t>(groups.groups.size()),
                .used_pages = groups.used_pages},
               headers, absl::MakeSpan(write.bytes));
  writes.push_back(std::move(write));
}

// Lets the marks speak of all groups: those that lie where a marked one was lost have none so far.
void ExtendMarks(const NvmeGeometry& geometry, const SegmentGroups& groups,
                 ManifestRecord& record) {
  const uint64_t marked = record.newest_generation;
  for (const GroupView& group : groups.groups) {
    if (group.group().generation <= marked) continue;
    record.newest_generation = std::max(record.newest_generation, group.group().generation);
    for (uint32_t i = 0; i < group.group().block_count; ++i) {
      const uint64_t in_segment =
          group.block_page(geometry, i) - geometry.SegmentPage(record.segment);
      record.dead[in_segment / geometry.pages_per_block] = false;
      record.reversed[in_segment / geometry.pages_per_block] = false;
    }
  }
}

// The surviving record, or one that says what is known without it.
ManifestRecord RecordToKeep(const NvmeGeometry& geometry, uint64_t epoch,
                            const SegmentSurvey& survey, bool marks) {
  const bool of_this_use = survey.manifest.segment_generation == survey.generation;
  if (survey.manifest.version > 0 && (of_this_use || !marks)) return survey.manifest;
  ManifestRecord record;
  record.epoch = epoch;
  record.segment_generation = survey.generation;
  record.version = survey.manifest.version;
  record.segment = survey.segment;
  record.freed = survey.use == SegmentSurvey::Use::kFree;
  record.durable_pages = survey.durable_pages;
  record.dead.resize(geometry.stretches());
  record.reversed.resize(geometry.stretches());
  return record;
}

// A version goes to the copy that its parity says: the next one to the copy that does not survive.
void PlanManifest(const NvmeGeometry& geometry, uint64_t epoch, const SegmentSurvey& survey,
                  const SegmentFaults& faults, const SegmentGroups& groups,
                  std::vector<RepairWrite>& writes) {
  std::array<bool, kManifestCopies> damaged = faults.manifest_damaged;
  const auto is_set = [](bool copy) { return copy; };
  const bool marks = !faults.damaged_blocks.empty();
  if (!marks && std::none_of(damaged.begin(), damaged.end(), is_set)) return;
  ManifestRecord record = RecordToKeep(geometry, epoch, survey, marks);
  ExtendMarks(geometry, groups, record);
  for (const uint64_t page : faults.damaged_blocks) {
    const uint64_t in_segment = page - geometry.SegmentPage(survey.segment);
    record.dead[in_segment / geometry.pages_per_block] = true;
  }
  bool late = false;
  do {
    ++record.version;
    const uint32_t copy = record.version % kManifestCopies;
    RepairWrite write =
        BlankWrite(geometry.ManifestPage(survey.segment, copy), geometry.manifest_pages);
    EncodeManifestRecord(geometry, record, absl::MakeSpan(write.bytes));
    write.late = late;
    writes.push_back(std::move(write));
    damaged[copy] = false;
    late = true;
  } while (std::any_of(damaged.begin(), damaged.end(), is_set));
}

absl::Status Sync(BlockDevice& device) {
  IoRequest request;
  request.op = IoOp::kSync;
  IoRequest* batch[] = {&request};
  return RunBatch(device, batch);
}

absl::Status WriteAll(BlockDevice& device, const std::vector<RepairWrite>& writes, bool late) {
  for (const RepairWrite& write : writes) {
    if (write.late != late) continue;
    absl::StatusOr<AlignedBuffer> bytes = AlignedBuffer::Create(write.bytes.size());
    if (!bytes.ok()) return bytes.status();
    std::copy(write.bytes.begin(), write.bytes.end(), bytes->span().begin());
    const iovec vector = {bytes->data(), write.bytes.size()};
    IoRequest request;
    request.op = IoOp::kWrite;
    request.offset = write.page * kPageBytes;
    request.buffers = absl::MakeConstSpan(&vector, 1);
    IoRequest* batch[] = {&request};
    if (absl::Status status = RunBatch(device, batch); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

void PlanSuperblock(const Superblock& superblock, uint32_t copy, std::vector<RepairWrite>& writes) {
  RepairWrite write = BlankWrite(copy, 1);
  EncodeSuperblock(superblock, absl::MakeSpan(write.bytes));
  writes.push_back(std::move(write));
}

void PlanSegment(const NvmeGeometry& geometry, uint64_t epoch, const SegmentSurvey& survey,
                 const SegmentFaults& faults, const SegmentGroups& groups,
                 std::vector<RepairWrite>& writes) {
  PlanHeaders(geometry, groups, writes);
  // A footer without the groups that are missing says that there are none.
  if (faults.footer_damaged || !groups.missing.empty()) {
    PlanFooter(geometry, epoch, survey, groups, writes);
  }
  PlanManifest(geometry, epoch, survey, faults, groups, writes);
}

// What was read may have been in the disk's cache alone, and is relied upon from now on.
absl::Status RepairNvmeTier(BlockDevice& device, const CheckReport& report) {
  if (report.repairs.empty()) return absl::OkStatus();
  if (absl::Status status = Sync(device); !status.ok()) return status;
  for (const bool late : {false, true}) {
    if (absl::Status status = WriteAll(device, report.repairs, late); !status.ok()) return status;
    if (absl::Status status = Sync(device); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace terrace
