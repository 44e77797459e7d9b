#include "tiers/nvme_recovery.h"

#include <algorithm>
#include <vector>

#include "io/aligned_buffer.h"

namespace terrace {
namespace {

// Segments whose headers are read in one batch.
constexpr size_t kSegmentsAtOnce = 64;

// Groups behind a torn one are not seen, and may be newer than all that are. New groups must be
// newer still, or those would pass for their successors when their segment is used again. More than
// a tier has groups.
constexpr uint64_t kHiddenGenerations = uint64_t{1} << 32;

// A walk through one segment, group by group.
struct Walk {
  SegmentIndex segment{};
  uint32_t used_pages = 0;
  uint64_t first_generation = 0;
  uint64_t last_generation = 0;
  bool ended = false;
};

class Recovery {
 public:
  explicit Recovery(Placement& placement)
      : placement_(placement),
        nvme_(*placement.nvme()),
        geometry_(nvme_.geometry()),
        walks_(geometry_.segment_count) {
    for (uint32_t i = 0; i < geometry_.segment_count; ++i) walks_[i].segment = SegmentIndex{i};
  }

  absl::Status WalkAll(absl::FunctionRef<absl::Status(absl::Span<IoRequest* const>)> run) {
    const size_t header_bytes = size_t{geometry_.header_pages} * kPageBytes;
    absl::StatusOr<AlignedBuffer> headers = AlignedBuffer::Create(kSegmentsAtOnce * header_bytes);
    if (!headers.ok()) return headers.status();
    for (size_t first = 0; first < walks_.size(); first += kSegmentsAtOnce) {
      const absl::Span<Walk> some = absl::MakeSpan(walks_).subspan(first, kSegmentsAtOnce);
      for (;;) {
        const absl::StatusOr<bool> more = Step(run, some, headers->span(), header_bytes);
        if (!more.ok()) return more.status();
        if (!*more) break;
      }
    }
    return absl::OkStatus();
  }

  void SealSegments() {
    std::sort(walks_.begin(), walks_.end(),
              [](const Walk& a, const Walk& b) { return a.first_generation < b.first_generation; });
    uint64_t last_generation = 0;
    for (const Walk& walk : walks_) {
      if (walk.used_pages == 0) continue;
      nvme_.RestoreSealed(walk.segment, walk.used_pages);
      last_generation = std::max(last_generation, walk.last_generation);
    }
    nvme_.RestoreGeneration(last_generation + kHiddenGenerations);
    nvme_.ReopenNewest();
  }

 private:
  // Reads the next header of every walk that has not ended; false when all have.
  absl::StatusOr<bool> Step(absl::FunctionRef<absl::Status(absl::Span<IoRequest* const>)> run,
                            absl::Span<Walk> walks, absl::Span<std::byte> headers,
                            size_t header_bytes) {
    std::vector<Walk*> reading;
    for (Walk& walk : walks) {
      const uint32_t smallest = geometry_.header_pages + geometry_.pages_per_block;
      walk.ended = walk.ended || walk.used_pages + smallest > geometry_.segment_pages;
      if (!walk.ended) reading.push_back(&walk);
    }
    if (reading.empty()) return false;
    std::vector<IoRequest> requests(reading.size());
    std::vector<iovec> vectors(reading.size());
    std::vector<IoRequest*> batch;
    for (size_t i = 0; i < reading.size(); ++i) {
      vectors[i] = {headers.data() + i * header_bytes, header_bytes};
      requests[i].offset = uint64_t{NextPage(*reading[i])} * kPageBytes;
      requests[i].buffers = absl::MakeConstSpan(&vectors[i], 1);
      batch.push_back(&requests[i]);
    }
    const absl::Status status = run(batch);
    const bool all_tried = std::all_of(
        requests.begin(), requests.end(),
        [&](const IoRequest& read) { return read.error != 0 || read.transferred == header_bytes; });
    if (!all_tried) return status;
    for (size_t i = 0; i < reading.size(); ++i) {
      if (requests[i].error != 0) {
        reading[i]->ended = true;  // what lies behind an unreadable header is lost, and a miss
      } else {
        TakeGroup(*reading[i], headers.subspan(i * header_bytes, header_bytes));
      }
    }
    return true;
  }

  uint32_t NextPage(const Walk& walk) const {
    return static_cast<uint32_t>(nvme_.SegmentStart(walk.segment)) + walk.used_pages;
  }

  void TakeGroup(Walk& walk, absl::Span<const std::byte> header) {
    const std::optional<GroupView> view =
        GroupView::Decode(geometry_, nvme_.epoch(), NextPage(walk), header);
    const uint32_t group_pages =
        view ? geometry_.header_pages + view->group().block_count * geometry_.pages_per_block : 0;
    // What an older use of the segment left has lower generations.
    if (!view || view->group().generation <= walk.last_generation ||
        walk.used_pages + group_pages > geometry_.segment_pages) {
      walk.ended = true;
      return;
    }
    if (walk.used_pages == 0) walk.first_generation = view->group().generation;
    walk.last_generation = view->group().generation;
    for (uint32_t i = 0; i < view->group().block_count; ++i) {
      const GroupRecord record = view->record(i);
      const PageIndex page{NextPage(walk) + geometry_.header_pages + i * geometry_.pages_per_block};
      if (record.valid && IsNewest(record.id, walk, page)) {
        placement_.RecoverBlock(record.id, page, record.retention, record.checksums);
      }
    }
    walk.used_pages += group_pages;
  }

  // Only one segment is open at a time, so generations order segments, and pages order the blocks
  // inside one.
  bool IsNewest(const BlockId& id, const Walk& walk, PageIndex page) const {
    const EntryIndex entry = placement_.directory().Find(id);
    if (entry == kNoEntry) return true;
    const PageIndex known = placement_.directory()[entry].page;
    const Walk& other = walks_[static_cast<size_t>(nvme_.SegmentAt(known))];
    if (other.segment == walk.segment) return page > known;
    return other.first_generation < walk.first_generation;
  }

  Placement& placement_;
  NvmeTier& nvme_;
  const NvmeGeometry geometry_;
  std::vector<Walk> walks_;  // by segment until SealSegments sorts them
};

}  // namespace

absl::Status RecoverNvme(absl::FunctionRef<absl::Status(absl::Span<IoRequest* const>)> run,
                         Placement& placement) {
  Recovery recovery(placement);
  const absl::Status status = recovery.WalkAll(run);
  if (status.ok()) recovery.SealSegments();
  return status;
}

}  // namespace terrace
