#ifndef TERRACE_TIERS_NVME_SURVEY_H_
#define TERRACE_TIERS_NVME_SURVEY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/io_request.h"
#include "tiers/nvme_format.h"

namespace terrace {

// Reads pages of an NVMe tier for those that look at a whole one: recovery and fsck.
class NvmeReader {
 public:
  // Carries out a batch of at most kMaxBatch requests and waits for it.
  using Run = absl::AnyInvocable<absl::Status(absl::Span<IoRequest* const>)>;
  static constexpr size_t kMaxBatch = 64;

  explicit NvmeReader(Run run) : run_(std::move(run)) {}

  struct Piece {
    uint64_t page = 0;
    absl::Span<std::byte> bytes;
    bool readable = false;  // set by Read
  };
  // An unreadable piece is an outcome; an error is that of a `run` that did not get to try.
  absl::Status Read(absl::Span<Piece> pieces);

 private:
  Run run_;
};

// What the manifest, the first group header and the footer of a segment say together.
struct SegmentSurvey {
  enum class Use : uint8_t { kFree, kUnsealed, kSealed };
  Use use = Use::kFree;
  SegmentIndex segment{};
  uint64_t generation = 0;         // of the use
  uint64_t newest_generation = 0;  // that any record in the segment names
  // The newest whole copy; version 0 where there is none. Its marks hold if it speaks of this use.
  ManifestRecord manifest;
  uint32_t damaged_copies = 0;     // of the manifest record: neither whole nor blank
  bool marks_in_one_copy = false;  // what the newest copy says is not in the other one
  uint32_t durable_pages = 0;      // so much must be there

  // Whether the manifest's marks speak of a group.
  bool MarksHold(const GroupHeader& group) const {
    return manifest.version > 0 && manifest.segment_generation == generation &&
           group.generation <= manifest.newest_generation;
  }
  // `page`: where a block of the group starts.
  bool Dead(const NvmeGeometry& geometry, const GroupHeader& group, uint64_t page) const;
  Retention RetentionOf(const NvmeGeometry& geometry, const GroupHeader& group, uint64_t page,
                        const GroupRecord& record) const;
};

// The epoch that a record names, which an earlier tier in the same place may have left.
// `record`: a page at least.
uint64_t EpochOf(absl::Span<const std::byte> record);
// Whether a copy of a manifest record could not be read, or is neither blank nor whole. One that an
// earlier tier left in the same place is whole.
bool ManifestIsDamaged(const NvmeGeometry& geometry, SegmentIndex segment,
                       absl::Span<const std::byte> copy);

// The bytes that a survey is made from. A span is empty where they could not be read.
struct SegmentBytes {
  absl::Span<const std::byte> manifest[kManifestCopies];
  absl::Span<const std::byte> header;  // of the first group
  absl::Span<const std::byte> footer;
};
SegmentSurvey Survey(const NvmeGeometry& geometry, uint64_t epoch, SegmentIndex segment,
                     const SegmentBytes& bytes);

// Reads what Survey needs for `count` segments from `first` on and hands each to `visit`.
// Segments are read in batches; `bytes` are valid during the call.
absl::Status SurveySegments(
    NvmeReader& reader, const NvmeGeometry& geometry, uint64_t epoch,
    absl::FunctionRef<void(const SegmentSurvey&, const SegmentBytes&)> visit);

// The groups of a segment without a footer.
struct SegmentWalk {
  struct Group {
    uint64_t page = 0;
    std::vector<std::byte> header;  // without its padding
  };
  std::vector<Group> groups;
  uint32_t used_pages = 0;
  // Of the last group; 0 when there is none, nullopt when what must be behind it cannot be read.
  std::optional<uint64_t> last_stamp = 0;
  uint64_t newest_generation = 0;
  uint32_t torn_groups = 0;    // whose data is not what their header says; the walk ended there
  uint32_t damaged_pages = 0;  // that must be there and belong to no group
  uint64_t verified_bytes = 0;
};

// Whether the group at `page` comes next in a walk through a use of a segment. `last`: the group
// that was found before it, if one was. `adjacent`: that one ends at `page`. Behind pages that
// could not be read a group is taken for its generation, which is safe only among durable ones.
bool Follows(const GroupHeader& group, uint64_t page, uint64_t use,
             const std::optional<GroupHeader>& last, bool adjacent);

// Walks a segment from group to group, and verifies the data of those that are not known to be
// durable. Ends at the first of them that is torn, stale or of another use: it was never promised.
absl::StatusOr<SegmentWalk> WalkSegment(NvmeReader& reader, const NvmeGeometry& geometry,
                                        uint64_t epoch, const SegmentSurvey& survey);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_SURVEY_H_
