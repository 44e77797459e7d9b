#include "tiers/nvme_survey.h"

#include <algorithm>
#include <cstring>

#include "io/aligned_buffer.h"

namespace terrace {
namespace {

bool Blank(absl::Span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](std::byte byte) { return byte == std::byte{}; });
}

uint32_t StretchOf(const NvmeGeometry& geometry, SegmentIndex segment, uint64_t page) {
  return static_cast<uint32_t>((page - geometry.SegmentPage(segment)) / geometry.pages_per_block);
}

}  // namespace

absl::Status NvmeReader::Read(absl::Span<Piece> pieces) {
  std::vector<IoRequest> requests(pieces.size());
  std::vector<iovec> vectors(pieces.size());
  std::vector<IoRequest*> batch;
  for (size_t i = 0; i < pieces.size(); ++i) {
    vectors[i] = {pieces[i].bytes.data(), pieces[i].bytes.size()};
    requests[i].offset = pieces[i].page * kPageBytes;
    requests[i].buffers = absl::MakeConstSpan(&vectors[i], 1);
    batch.push_back(&requests[i]);
  }
  for (size_t first = 0; first < batch.size(); first += kMaxBatch) {
    const absl::Span<IoRequest* const> some = absl::MakeConstSpan(batch).subspan(first, kMaxBatch);
    const absl::Status status = run_(some);
    for (size_t i = first; i < first + some.size(); ++i) {
      pieces[i].readable =
          requests[i].error == 0 && requests[i].transferred == pieces[i].bytes.size();
      if (!pieces[i].readable && requests[i].error == 0) return status;
    }
  }
  return absl::OkStatus();
}

bool SegmentSurvey::Dead(const NvmeGeometry& geometry, const GroupHeader& group,
                         uint64_t page) const {
  return MarksHold(group) && manifest.dead[StretchOf(geometry, segment, page)];
}

Retention SegmentSurvey::RetentionOf(const NvmeGeometry& geometry, const GroupHeader& group,
                                     uint64_t page, const GroupRecord& record) const {
  if (!MarksHold(group) || !manifest.reversed[StretchOf(geometry, segment, page)]) {
    return record.retention;
  }
  return record.retention == Retention::kOwned ? Retention::kCached : Retention::kOwned;
}

uint64_t EpochOf(absl::Span<const std::byte> record) {
  constexpr size_t kEpochOffset = 16;
  uint64_t epoch = 0;
  std::memcpy(&epoch, record.data() + kEpochOffset, sizeof(epoch));
  return epoch;
}

bool ManifestIsDamaged(const NvmeGeometry& geometry, SegmentIndex segment,
                       absl::Span<const std::byte> copy) {
  if (copy.empty()) return true;
  return !DecodeManifestRecord(geometry, EpochOf(copy), segment, copy) && !Blank(copy);
}

namespace {

bool SayTheSame(const ManifestRecord& a, const ManifestRecord& b) {
  return a.segment_generation == b.segment_generation && a.freed == b.freed && a.dead == b.dead &&
         a.reversed == b.reversed;
}

// Takes the newest of the copies.
void TakeManifest(const NvmeGeometry& geometry, uint64_t epoch, const SegmentBytes& bytes,
                  SegmentSurvey& survey) {
  ManifestRecord& newest = survey.manifest;
  std::optional<ManifestRecord> other;
  for (const absl::Span<const std::byte> copy : bytes.manifest) {
    if (ManifestIsDamaged(geometry, survey.segment, copy)) ++survey.damaged_copies;
    std::optional<ManifestRecord> record =
        DecodeManifestRecord(geometry, epoch, survey.segment, copy);
    if (record && record->version > newest.version) std::swap(newest, *record);
    if (record && record->version > 0) other = *std::move(record);
  }
  const auto is_set = [](bool mark) { return mark; };
  const bool says_something = newest.freed ||
                              std::any_of(newest.dead.begin(), newest.dead.end(), is_set) ||
                              std::any_of(newest.reversed.begin(), newest.reversed.end(), is_set);
  survey.marks_in_one_copy = says_something && !(other && SayTheSame(*other, newest));
}

}  // namespace

SegmentSurvey Survey(const NvmeGeometry& geometry, uint64_t epoch, SegmentIndex segment,
                     const SegmentBytes& bytes) {
  SegmentSurvey survey;
  survey.segment = segment;
  TakeManifest(geometry, epoch, bytes, survey);
  const std::optional<FooterView> footer = DecodeFooter(geometry, epoch, segment, bytes.footer);
  std::optional<GroupView> first = GroupView::Decode(geometry, epoch, bytes.header);
  if (first && first->group().base_page != geometry.SegmentPage(segment)) first.reset();

  const uint64_t manifest_use = survey.manifest.segment_generation;
  const bool freed = survey.manifest.freed;
  const uint64_t footer_use = footer ? footer->footer.segment_generation : 0;
  const uint64_t first_use = first ? first->group().segment_generation : 0;
  survey.newest_generation =
      std::max({manifest_use, survey.manifest.newest_generation, footer_use, first_use});
  for (const GroupView& group : footer ? footer->groups : std::vector<GroupView>()) {
    survey.newest_generation = std::max(survey.newest_generation, group.group().generation);
  }
  // Of two uses the newer one holds; one that was freed holds no more.
  survey.generation = std::max({freed ? 0 : manifest_use, footer_use, first_use});
  if (survey.generation == 0 || (freed && survey.generation <= manifest_use)) {
    survey.generation = manifest_use;
    return survey;
  }
  const bool sealed = footer_use == survey.generation;
  survey.use = sealed ? SegmentSurvey::Use::kSealed : SegmentSurvey::Use::kUnsealed;
  if (sealed) {
    survey.durable_pages = footer->footer.used_pages;
  } else if (manifest_use == survey.generation) {
    survey.durable_pages = survey.manifest.durable_pages;
  }
  return survey;
}

absl::Status SurveySegments(
    NvmeReader& reader, const NvmeGeometry& geometry, uint64_t epoch,
    absl::FunctionRef<void(const SegmentSurvey&, const SegmentBytes&)> visit) {
  const size_t manifest_bytes = size_t{geometry.manifest_pages} * kPageBytes;
  const size_t header_bytes = size_t{geometry.header_pages} * kPageBytes;
  const size_t footer_bytes = size_t{geometry.footer_pages} * kPageBytes;
  const size_t each = kManifestCopies * manifest_bytes + header_bytes + footer_bytes;
  // A request for each copy, because a bad sector fails the whole of one.
  constexpr uint32_t kPieces = kManifestCopies + 2;
  constexpr uint32_t kAtOnce = NvmeReader::kMaxBatch / kPieces;
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(kAtOnce * each);
  if (!buffer.ok()) return buffer.status();
  for (uint32_t start = 0; start < geometry.segment_count; start += kAtOnce) {
    const uint32_t count = std::min(kAtOnce, geometry.segment_count - start);
    std::vector<NvmeReader::Piece> pieces;
    for (uint32_t i = 0; i < count; ++i) {
      const SegmentIndex segment{start + i};
      absl::Span<std::byte> at = buffer->span().subspan(i * each, each);
      for (uint32_t copy = 0; copy < kManifestCopies; ++copy) {
        pieces.push_back(
            {.page = geometry.ManifestPage(segment, copy), .bytes = at.first(manifest_bytes)});
        at.remove_prefix(manifest_bytes);
      }
      pieces.push_back({.page = geometry.SegmentPage(segment), .bytes = at.first(header_bytes)});
      at.remove_prefix(header_bytes);
      pieces.push_back({.page = geometry.FooterPage(segment), .bytes = at});
    }
    if (absl::Status status = reader.Read(absl::MakeSpan(pieces)); !status.ok()) return status;
    for (uint32_t i = 0; i < count; ++i) {
      const NvmeReader::Piece* piece = &pieces[size_t{kPieces} * i];
      const auto readable = [](const NvmeReader::Piece& piece) {
        return piece.readable ? piece.bytes : absl::Span<std::byte>();
      };
      SegmentBytes bytes;
      for (uint32_t copy = 0; copy < kManifestCopies; ++copy) {
        bytes.manifest[copy] = readable(piece[copy]);
      }
      bytes.header = readable(piece[kManifestCopies]);
      bytes.footer = readable(piece[kManifestCopies + 1]);
      visit(Survey(geometry, epoch, SegmentIndex{start + i}, bytes), bytes);
    }
  }
  return absl::OkStatus();
}

bool Follows(const GroupHeader& group, uint64_t page, uint64_t use,
             const std::optional<GroupHeader>& last, bool adjacent) {
  if (group.base_page != page || group.segment_generation != use) return false;
  if (adjacent) return group.previous_stamp == (last ? last->stamp : 0);
  return !last || group.generation > last->generation;
}

absl::StatusOr<SegmentWalk> WalkSegment(NvmeReader& reader, const NvmeGeometry& geometry,
                                        uint64_t epoch, const SegmentSurvey& survey) {
  const size_t header_bytes = size_t{geometry.header_pages} * kPageBytes;
  const uint32_t most_pages = geometry.group_pages(geometry.group_blocks);
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(size_t{most_pages} * kPageBytes);
  if (!buffer.ok()) return buffer.status();
  SegmentWalk walk;
  const uint64_t start = geometry.SegmentPage(survey.segment);
  std::optional<GroupHeader> last;
  for (uint32_t at = 0; at + geometry.group_pages(1) <= geometry.data_pages();) {
    const bool durable = at < survey.durable_pages;
    const uint32_t pages =
        durable ? geometry.header_pages : std::min(most_pages, geometry.data_pages() - at);
    NvmeReader::Piece piece = {.page = start + at,
                               .bytes = buffer->span().first(size_t{pages} * kPageBytes)};
    if (absl::Status status = reader.Read(absl::MakeSpan(&piece, 1)); !status.ok()) return status;
    std::optional<GroupView> view;
    if (piece.readable) view = GroupView::Decode(geometry, epoch, piece.bytes.first(header_bytes));
    const bool adjacent = at == walk.used_pages;
    const bool belongs =
        view && Follows(view->group(), start + at, survey.generation, last, adjacent);
    if (!belongs || (!adjacent && !durable)) {
      if (!durable) break;
      ++walk.damaged_pages;
      ++at;
      continue;
    }
    const uint32_t group_pages = geometry.group_pages(view->group().block_count);
    if (!durable) {
      bool whole = true;
      for (uint32_t i = 0; i < view->group().block_count && whole; ++i) {
        const GroupRecord record = view->record(i);
        const absl::Span<const std::byte> block =
            piece.bytes.subspan(size_t{geometry.group_pages(i)} * kPageBytes,
                                size_t{geometry.pages_per_block} * kPageBytes);
        whole =
            !record.valid || FirstCorruptPage(block, record.checksums) == record.checksums.size();
        walk.verified_bytes += block.size();
      }
      if (!whole) {
        ++walk.torn_groups;
        break;
      }
    }
    last = view->group();
    walk.groups.push_back(
        {.page = start + at, .header = {view->bytes().begin(), view->bytes().end()}});
    at += group_pages;
    walk.used_pages = at;
  }
  if (last) {
    walk.last_stamp = last->stamp;
    walk.newest_generation = last->generation;
  }
  if (walk.used_pages < survey.durable_pages) walk.last_stamp.reset();
  return walk;
}

}  // namespace terrace
