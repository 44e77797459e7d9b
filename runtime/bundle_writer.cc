#include "runtime/bundle_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "io/opened_file.h"
#include "io/unique_fd.h"
#include "runtime/bundle_header.h"

namespace terrace {
namespace {

// Enough for the full bandwidth of a disk.
constexpr size_t kRunBytes = size_t{8} << 20;

absl::Status SyncDirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.valid() && ::fsync(fd.get()) == 0) return absl::OkStatus();
  return FileError(path, "cannot sync its directory", errno);
}

template <typename T>
absl::Span<const std::byte> BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<BundleWriter>> BundleWriter::Create(const std::string& path,
                                                                   const BundleShape& shape,
                                                                   BundleTables tables) {
  if (absl::Status status = shape.Validate(); !status.ok()) return status;
  if (absl::Status status = tables.Validate(shape); !status.ok()) return status;
  auto writer = std::unique_ptr<BundleWriter>(new BundleWriter(path, shape, std::move(tables)));
  if (absl::Status status = writer->Open(); !status.ok()) return status;
  return writer;
}

BundleWriter::BundleWriter(const std::string& path, const BundleShape& shape, BundleTables tables)
    : path_(path), temporary_(path + ".new"), shape_(shape), tables_(std::move(tables)) {}

BundleWriter::~BundleWriter() {
  for (Staging& staging : staging_) WaitFor(staging).IgnoreError();
  device_.reset();
  if (owns_temporary_) ::unlink(temporary_.c_str());
}

BundleHeader BundleWriter::Header() const {
  BundleHeader header;
  header.shape = shape_;
  header.model_fingerprint = tables_.model_fingerprint;
  header.false_negative_bound = tables_.false_negative_bound;
  const auto set = [&header](BundleTable table, size_t bytes) {
    header.tables[static_cast<size_t>(table)].bytes = bytes;
  };
  set(BundleTable::kChecksums, shape_.data_bytes() / kPageBytes * sizeof(PageChecksum));
  set(BundleTable::kOrder, tables_.order.size() * sizeof(uint32_t));
  set(BundleTable::kFrequency, tables_.frequency.size() * sizeof(float));
  set(BundleTable::kPredictors, PredictorTableBytes(tables_.predictors));
  PlaceTables(header);
  return header;
}

absl::Status BundleWriter::Open() {
  FileDeviceOptions options;
  options.path = temporary_;
  options.size_bytes = Header().file_bytes;
  options.create = true;
  options.truncate = true;
  options.depth = 8;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(options);
  if (!device.ok()) return device.status();
  device_ = *std::move(device);
  owns_temporary_ = true;
  const size_t groups = std::clamp<uint64_t>(kRunBytes / shape_.group_bytes(), 1, shape_.groups());
  run_places_ = static_cast<uint32_t>(groups) * shape_.group_neurons;
  for (Staging& staging : staging_) {
    absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(groups * shape_.group_bytes());
    if (!buffer.ok()) return buffer.status();
    staging.buffer = *std::move(buffer);
  }
  checksums_.resize(shape_.data_bytes() / kPageBytes);
  return absl::OkStatus();
}

void BundleWriter::Arrange(const BundleRun& run, absl::Span<const std::byte> bundles,
                           uint32_t piece, size_t stride, std::byte* to) const {
  const size_t row_bytes = shape_.row_bytes(piece);
  const std::byte* from = bundles.data() + shape_.first_part(piece) * shape_.part_bytes();
  for (uint32_t place = 0; place < run.places; place += shape_.group_neurons, to += stride) {
    const uint32_t count = std::min(shape_.group_neurons, run.places - place);
    std::byte* row = to;
    for (uint32_t i = 0; i < count; ++i) {
      std::memcpy(row, from, row_bytes);
      row += row_bytes;
      from += shape_.bundle_bytes();
    }
    std::memset(row, 0, shape_.piece_bytes(piece) - count * row_bytes);
  }
}

void BundleWriter::AddRequest(Staging& staging, size_t index, uint64_t offset,
                              absl::Span<std::byte> bytes) {
  const uint64_t page = (offset - BundleShape::kDataOffset) / kPageBytes;
  ChecksumPages(bytes, absl::MakeSpan(checksums_).subspan(page, bytes.size() / kPageBytes));
  staging.buffers[index] = {bytes.data(), bytes.size()};
  IoRequest& request = staging.requests[index];
  request.op = IoOp::kWrite;
  request.offset = offset;
  request.buffers = absl::MakeConstSpan(&staging.buffers[index], 1);
  request.context = &staging;
  IoRequest* const batch[] = {&request};
  ++staging.in_flight;
  device_->Submit(batch);
}

absl::Status BundleWriter::WaitFor(Staging& staging) {
  while (staging.in_flight > 0) {
    IoRequest* done[2 * BundleShape::kMaxPieces];
    const size_t count = device_->Wait(absl::MakeSpan(done));
    for (size_t i = 0; i < count; ++i) {
      --static_cast<Staging*>(done[i]->context)->in_flight;
      if (status_.ok()) status_ = device_->StatusOf(*done[i]);
    }
  }
  return status_;
}

absl::Status BundleWriter::Write(const BundleRun& run, absl::Span<const std::byte> bundles) {
  TERRACE_CHECK(run.unit < shape_.units() && run.places >= 1 && run.places <= run_places_);
  TERRACE_CHECK(run.first_place % shape_.group_neurons == 0);
  TERRACE_CHECK(run.places % shape_.group_neurons == 0 ||
                run.first_place + run.places == shape_.neurons);
  TERRACE_CHECK_EQ(bundles.size(), run.places * shape_.bundle_bytes());
  Staging& staging = staging_[next_staging_];
  next_staging_ = 1 - next_staging_;
  if (absl::Status status = WaitFor(staging); !status.ok()) return status;

  const uint32_t group = shape_.group_of(run.first_place);
  const uint32_t groups = (run.places + shape_.group_neurons - 1) / shape_.group_neurons;
  std::byte* to = staging.buffer.data();
  for (uint32_t piece = 0; piece < shape_.pieces(); ++piece) {
    if (shape_.groups_are_runs()) {
      Arrange(run, bundles, piece, shape_.group_bytes(), to);
      to += shape_.piece_bytes(piece);
    } else {
      const size_t bytes = groups * shape_.piece_bytes(piece);
      Arrange(run, bundles, piece, shape_.piece_bytes(piece), to);
      AddRequest(staging, piece, shape_.PieceOffset(run.unit, group, piece), {to, bytes});
      to += bytes;
    }
  }
  if (shape_.groups_are_runs()) {
    AddRequest(staging, 0, shape_.GroupOffset(run.unit, group),
               staging.buffer.span().first(groups * shape_.group_bytes()));
  }
  written_groups_ += groups;
  return status_;
}

absl::Status BundleWriter::WriteTable(absl::Span<const std::byte> bytes, BundleExtent& extent) {
  TERRACE_CHECK_EQ(bytes.size(), extent.bytes);
  extent.checksum = Checksum64(bytes);
  if (bytes.empty()) return absl::OkStatus();
  absl::StatusOr<AlignedBuffer> pages = AlignedBuffer::Create(bytes.size());
  if (!pages.ok()) return pages.status();
  std::memcpy(pages->data(), bytes.data(), bytes.size());
  return WritePages(extent.offset, *pages);
}

absl::Status BundleWriter::WritePages(uint64_t offset, const AlignedBuffer& pages) {
  const iovec vector = {pages.data(), pages.size()};
  IoRequest request;
  request.op = IoOp::kWrite;
  request.offset = offset;
  request.buffers = absl::MakeConstSpan(&vector, 1);
  IoRequest* const batch[] = {&request};
  return RunBatch(*device_, batch);
}

absl::Status BundleWriter::Sync() {
  IoRequest request;
  request.op = IoOp::kSync;
  IoRequest* const batch[] = {&request};
  return RunBatch(*device_, batch);
}

absl::Status BundleWriter::Commit() {
  for (Staging& staging : staging_) WaitFor(staging).IgnoreError();
  if (!status_.ok()) return status_;
  TERRACE_CHECK_EQ(written_groups_, shape_.all_groups());
  BundleHeader header = Header();
  std::vector<std::byte> predictors(PredictorTableBytes(tables_.predictors));
  EncodePredictors(tables_.predictors, absl::MakeSpan(predictors));
  const absl::Span<const std::byte> tables[kBundleTables] = {
      BytesOf(checksums_), BytesOf(tables_.order), BytesOf(tables_.frequency), predictors};
  for (size_t i = 0; i < kBundleTables; ++i) {
    if (status_.ok()) status_ = WriteTable(tables[i], header.tables[i]);
  }
  absl::StatusOr<AlignedBuffer> page = AlignedBuffer::Create(kPageBytes);
  if (status_.ok()) status_ = page.status();
  if (!status_.ok()) return status_;
  EncodeBundleHeader(header, page->span());
  status_ = WritePages(0, *page);
  if (status_.ok()) status_ = Sync();
  if (status_.ok() && ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    status_ = FileError(path_, "cannot rename the new file to it", errno);
  }
  if (!status_.ok()) return status_;
  owns_temporary_ = false;
  status_ = SyncDirectoryOf(path_);
  return status_;
}

absl::Status WriteBundleFile(const std::string& path, const BundleShape& shape, BundleTables tables,
                             BundleSource source) {
  const absl::StatusOr<std::unique_ptr<BundleWriter>> writer =
      BundleWriter::Create(path, shape, std::move(tables));
  if (!writer.ok()) return writer.status();
  std::vector<std::byte> bundles((*writer)->run_places() * shape.bundle_bytes());
  for (uint32_t unit = 0; unit < shape.units(); ++unit) {
    for (uint32_t place = 0; place < shape.neurons; place += (*writer)->run_places()) {
      const uint32_t count = std::min((*writer)->run_places(), shape.neurons - place);
      const BundleRun run = {unit, place, count};
      const absl::Span<std::byte> part =
          absl::MakeSpan(bundles).first(count * shape.bundle_bytes());
      absl::Status status = source(run, part);
      if (status.ok()) status = (*writer)->Write(run, part);
      if (!status.ok()) return status;
    }
  }
  return (*writer)->Commit();
}

}  // namespace terrace
