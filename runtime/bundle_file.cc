#include "runtime/bundle_file.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "io/check.h"
#include "runtime/bundle_header.h"

namespace terrace {
namespace {

absl::Status Named(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

// Reads whole pages from `offset` on.
absl::StatusOr<AlignedBuffer> ReadPages(BlockDevice& device, uint64_t offset, uint64_t bytes) {
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(PageAlignUp(bytes));
  if (!buffer.ok()) return buffer.status();
  const iovec vector = {buffer->data(), buffer->size()};
  IoRequest request;
  request.offset = offset;
  request.buffers = absl::MakeConstSpan(&vector, 1);
  IoRequest* const batch[] = {&request};
  if (absl::Status status = RunBatch(device, batch); !status.ok()) return status;
  return buffer;
}

template <typename T>
std::vector<T> CopyOf(absl::Span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const BundleFile>> BundleFile::Open(const std::string& path,
                                                                   uint64_t max_bytes) {
  FileDeviceOptions options;
  options.path = path;
  options.read_only = true;
  options.depth = 1;
  const absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(options);
  if (!device.ok()) return device.status();
  return Read(**device, max_bytes);
}

absl::StatusOr<std::unique_ptr<const BundleFile>> BundleFile::Read(BlockDevice& device,
                                                                   uint64_t max_bytes) {
  const std::string& path = device.info().path;
  const uint64_t size = device.info().size_bytes;
  if (size < kPageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", size, " bytes, too few for a bundle file"));
  }
  const absl::StatusOr<AlignedBuffer> page = ReadPages(device, 0, kPageBytes);
  if (!page.ok()) return page.status();
  const absl::StatusOr<BundleHeader> header = DecodeBundleHeader(page->span());
  if (!header.ok()) return Named(path, header.status());
  if (header->file_bytes != size) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": bundles: has ", size, " bytes where its header says ",
                     header->file_bytes, size < header->file_bytes ? "; truncated?" : ""));
  }
  // Before anything is allocated for what a forged header asks.
  const uint64_t tables = size - header->shape.data_end();
  if (tables > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": bundles: needs ", tables,
                     " bytes of memory for its tables alone, and was given ", max_bytes));
  }
  auto file = std::unique_ptr<BundleFile>(new BundleFile());
  file->path_ = path;
  file->shape_ = header->shape;
  file->file_bytes_ = size;
  file->tables_.model_fingerprint = header->model_fingerprint;
  file->tables_.false_negative_bound = header->false_negative_bound;
  if (absl::Status status = file->ReadTables(device, *header); !status.ok()) return status;
  if (absl::Status status = file->tables_.Validate(file->shape_); !status.ok()) {
    return Named(path, status);
  }
  return std::unique_ptr<const BundleFile>(std::move(file));
}

absl::Status BundleFile::ReadTables(BlockDevice& device, const BundleHeader& header) {
  for (size_t i = 0; i < kBundleTables; ++i) {
    const BundleExtent& extent = header.tables[i];
    if (extent.bytes == 0) continue;
    const absl::StatusOr<AlignedBuffer> pages = ReadPages(device, extent.offset, extent.bytes);
    if (!pages.ok()) return pages.status();
    const absl::Span<const std::byte> bytes = pages->span().first(extent.bytes);
    const auto table = static_cast<BundleTable>(i);
    if (Checksum64(bytes) != extent.checksum) {
      return absl::DataLossError(absl::StrCat(path_, ": bundles: the checksum of the table of ",
                                              BundleTableName(table), " at offset ", extent.offset,
                                              " is wrong"));
    }
    switch (table) {
      case BundleTable::kChecksums:
        checksums_ = CopyOf<PageChecksum>(bytes);
        break;
      case BundleTable::kOrder:
        tables_.order = CopyOf<uint32_t>(bytes);
        break;
      case BundleTable::kFrequency:
        tables_.frequency = CopyOf<float>(bytes);
        break;
      case BundleTable::kPredictors: {
        absl::StatusOr<std::vector<PredictorFactors>> predictors = DecodePredictors(shape_, bytes);
        if (!predictors.ok()) return Named(path_, predictors.status());
        tables_.predictors = *std::move(predictors);
        break;
      }
    }
  }
  return absl::OkStatus();
}

size_t BundleFile::memory_bytes() const {
  return tables_.bytes() + checksums_.size() * sizeof(PageChecksum);
}

uint32_t BundleFile::NeuronAt(uint32_t unit, uint32_t place) const {
  if (tables_.order.empty()) return place;
  return tables_.order[uint64_t{unit} * shape_.neurons + place];
}

std::vector<uint32_t> BundleFile::PlacesOf(uint32_t unit) const {
  std::vector<uint32_t> places(shape_.neurons);
  for (uint32_t place = 0; place < shape_.neurons; ++place) places[NeuronAt(unit, place)] = place;
  return places;
}

absl::Span<const float> BundleFile::Frequency(uint32_t unit) const {
  if (tables_.frequency.empty()) return {};
  return absl::MakeConstSpan(tables_.frequency)
      .subspan(size_t{unit} * shape_.neurons, shape_.neurons);
}

const PredictorFactors* BundleFile::Predictor(uint32_t unit) const {
  return tables_.predictors.empty() ? nullptr : &tables_.predictors[unit];
}

absl::Status BundleFile::Verify(uint64_t offset, absl::Span<const std::byte> bytes) const {
  TERRACE_CHECK(IsPageAligned(offset) && IsPageAligned(bytes.size()));
  TERRACE_CHECK(offset >= BundleShape::kDataOffset && offset <= shape_.data_end() &&
                bytes.size() <= shape_.data_end() - offset);
  const uint64_t first = (offset - BundleShape::kDataOffset) / kPageBytes;
  const size_t pages = bytes.size() / kPageBytes;
  const size_t wrong =
      FirstCorruptPage(bytes, absl::MakeConstSpan(checksums_).subspan(first, pages));
  if (wrong == pages) return absl::OkStatus();
  const uint64_t at = offset + wrong * kPageBytes;
  const BundlePosition position = shape_.PositionOf(at);
  return absl::DataLossError(absl::StrCat(path_, ": bundles: the checksum of the page at offset ",
                                          at, " is wrong (layer ", position.unit / shape_.experts,
                                          ", expert ", position.unit % shape_.experts, ", group ",
                                          position.group, ")"));
}

absl::Status BundleFile::CheckModel(uint64_t model_fingerprint) const {
  if (model_fingerprint == tables_.model_fingerprint) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path_, ": was packed from another model: its fingerprint is ",
                   absl::Hex(tables_.model_fingerprint, absl::kZeroPad16), ", that of this model ",
                   absl::Hex(model_fingerprint, absl::kZeroPad16)));
}

}  // namespace terrace
