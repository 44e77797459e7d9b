#include "tiers/nvme_check_segment.h"

#include <algorithm>
#include <utility>

#include "io/check.h"

namespace terrace {
namespace {

constexpr uint32_t kPiecePages = (1 << 20) / kPageBytes;
constexpr uint32_t kPiecesAtOnce = 16;

bool WholeGroup(const SegmentImage& image, const NvmeGeometry& geometry, const GroupView& group) {
  for (uint32_t i = 0; i < group.group().block_count; ++i) {
    const GroupRecord record = group.record(i);
    if (record.valid && image.FirstDamagedPage(group.block_page(geometry, i), record)) return false;
  }
  return true;
}

}  // namespace

SegmentImage::SegmentImage(const NvmeGeometry& geometry, AlignedBuffer bytes)
    : geometry_(geometry), bytes_(std::move(bytes)), read_(geometry.segment_pages) {}

absl::StatusOr<SegmentImage> SegmentImage::Create(const NvmeGeometry& geometry) {
  absl::StatusOr<AlignedBuffer> bytes =
      AlignedBuffer::Create(size_t{geometry.segment_pages} * kPageBytes);
  if (!bytes.ok()) return bytes.status();
  return SegmentImage(geometry, *std::move(bytes));
}

void SegmentImage::Begin(SegmentIndex segment) {
  start_ = geometry_.SegmentPage(segment);
  read_.assign(read_.size(), false);
}

absl::Status SegmentImage::Read(NvmeReader& reader, uint64_t page, uint32_t count,
                                absl::FunctionRef<bool(uint64_t)> go_on) {
  TERRACE_CHECK(page >= start_ && page - start_ + count <= geometry_.segment_pages);
  std::vector<NvmeReader::Piece> pieces;
  while (count > 0) {
    pieces.clear();
    uint64_t step_bytes = 0;
    while (count > 0 && pieces.size() < kPiecesAtOnce) {
      const uint32_t pages = std::min(count, kPiecePages);
      const size_t bytes = size_t{pages} * kPageBytes;
      pieces.push_back(
          {.page = page, .bytes = bytes_.span().subspan((page - start_) * kPageBytes, bytes)});
      page += pages;
      count -= pages;
      step_bytes += bytes;
    }
    if (absl::Status status = reader.Read(absl::MakeSpan(pieces)); !status.ok()) return status;
    for (const NvmeReader::Piece& piece : pieces) {
      if (piece.readable) {
        MarkRead(piece);
      } else if (absl::Status status = ReadOneByOne(reader, piece); !status.ok()) {
        return status;
      }
    }
    if (!go_on(step_bytes)) return absl::CancelledError("the check was stopped");
  }
  return absl::OkStatus();
}

// One bad sector must not cost what lies around it.
absl::Status SegmentImage::ReadOneByOne(NvmeReader& reader, const NvmeReader::Piece& piece) {
  std::vector<NvmeReader::Piece> pages;
  for (size_t at = 0; at < piece.bytes.size(); at += kPageBytes) {
    pages.push_back(
        {.page = piece.page + at / kPageBytes, .bytes = piece.bytes.subspan(at, kPageBytes)});
  }
  if (absl::Status status = reader.Read(absl::MakeSpan(pages)); !status.ok()) return status;
  for (const NvmeReader::Piece& page : pages) {
    if (page.readable) MarkRead(page);
  }
  return absl::OkStatus();
}

void SegmentImage::MarkRead(const NvmeReader::Piece& piece) {
  const auto first = read_.begin() + static_cast<std::ptrdiff_t>(piece.page - start_);
  std::fill_n(first, piece.bytes.size() / kPageBytes, true);
}

absl::Span<const std::byte> SegmentImage::Pages(uint64_t page, uint32_t count) const {
  TERRACE_CHECK(page >= start_ && page - start_ + count <= geometry_.segment_pages);
  const auto first = read_.begin() + static_cast<std::ptrdiff_t>(page - start_);
  if (!std::all_of(first, first + count, [](bool read) { return read; })) return {};
  return bytes_.span().subspan((page - start_) * kPageBytes, size_t{count} * kPageBytes);
}

std::optional<uint32_t> SegmentImage::FirstDamagedPage(uint64_t page,
                                                       const GroupRecord& record) const {
  const uint32_t count = geometry_.pages_per_block;
  const absl::Span<const std::byte> block = Pages(page, count);
  if (!block.empty()) {
    const size_t first = FirstCorruptPage(block, record.checksums);
    if (first == count) return std::nullopt;
    return static_cast<uint32_t>(first);
  }
  for (uint32_t i = 0; i < count; ++i) {
    const absl::Span<const std::byte> one = Pages(page + i, 1);
    if (one.empty() || FirstCorruptPage(one, record.checksums.subspan(i, 1)) == 0) return i;
  }
  return std::nullopt;
}

SegmentGroups GroupsOfFooter(const SegmentImage& image, const NvmeGeometry& geometry,
                             const FooterView& footer) {
  SegmentGroups found;
  found.groups = footer.groups;
  found.used_pages = footer.footer.used_pages;
  for (size_t i = 0; i < found.groups.size(); ++i) {
    const absl::Span<const std::byte> wanted = found.groups[i].bytes();
    const absl::Span<const std::byte> header =
        image.Pages(found.groups[i].group().base_page, geometry.header_pages);
    if (header.empty() || header.first(wanted.size()) != wanted) found.damaged_headers.push_back(i);
  }
  return found;
}

SegmentGroups WalkGroups(const SegmentImage& image, const NvmeGeometry& geometry, uint64_t epoch,
                         const SegmentSurvey& survey, bool all_durable) {
  SegmentGroups found;
  const uint64_t start = geometry.SegmentPage(survey.segment);
  std::optional<GroupHeader> last;
  for (uint32_t at = 0; at + geometry.group_pages(1) <= geometry.data_pages();) {
    const bool durable = all_durable || at < survey.durable_pages;
    const std::optional<GroupView> view =
        GroupView::Decode(geometry, epoch, image.Pages(start + at, geometry.header_pages));
    const bool adjacent = at == found.used_pages;
    const bool belongs =
        view && Follows(view->group(), start + at, survey.generation, last, adjacent);
    if (!belongs || (!adjacent && !durable)) {
      if (!durable) break;
      ++at;
      continue;
    }
    if (!durable && !WholeGroup(image, geometry, *view)) {
      ++found.unfinished;
      break;
    }
    if (at > found.used_pages) {
      found.missing.push_back({start + found.used_pages, at - found.used_pages});
    }
    last = view->group();
    found.groups.push_back(*view);
    at += geometry.group_pages(view->group().block_count);
    found.used_pages = at;
  }
  if (survey.durable_pages > found.used_pages) {
    found.missing.push_back({start + found.used_pages, survey.durable_pages - found.used_pages});
    found.used_pages = survey.durable_pages;
  }
  return found;
}

}  // namespace terrace
