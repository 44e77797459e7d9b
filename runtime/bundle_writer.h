#ifndef TERRACE_RUNTIME_BUNDLE_WRITER_H_
#define TERRACE_RUNTIME_BUNDLE_WRITER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "runtime/bundle_file.h"

namespace terrace {

struct BundleExtent;

// Consecutive places of one expert, which start with a group and end with one, or with the expert.
struct BundleRun {
  uint32_t unit = 0;
  uint32_t first_place = 0;
  uint32_t places = 0;
};

// Writes a bundle file group by group, in little memory: the tables, a checksum a page, and two
// buffers, one of which is written while the other is filled. The file is made beside its name
// (`path`.new), with all of its space taken from the disk at once, and appears under its name only
// when it is whole and has been synced. Belongs to one thread.
class BundleWriter {
 public:
  // kInvalidArgument for a bad shape or bad tables; kResourceExhausted, with needed and available
  // bytes, when the disk has no room; others as of OpenFileDevice.
  static absl::StatusOr<std::unique_ptr<BundleWriter>> Create(const std::string& path,
                                                              const BundleShape& shape,
                                                              BundleTables tables);
  // Removes what was not committed.
  ~BundleWriter();
  BundleWriter(const BundleWriter&) = delete;
  BundleWriter& operator=(const BundleWriter&) = delete;

  // The most places that one Write takes: whole groups.
  uint32_t run_places() const { return run_places_; }
  // bundles: [run.places, parts, width] in the shape's dtype. In any order of runs, each group
  // once. REQUIRES: a run of at most run_places() that starts with a group. The first error is
  // kept.
  absl::Status Write(const BundleRun& run, absl::Span<const std::byte> bundles);
  // Writes tables and header, syncs, and gives the file its name. REQUIRES: every group was
  // written.
  absl::Status Commit();

 private:
  // One run on its way to the disk.
  struct Staging {
    AlignedBuffer buffer;
    std::array<IoRequest, BundleShape::kMaxPieces> requests;
    std::array<iovec, BundleShape::kMaxPieces> buffers;
    size_t in_flight = 0;
  };

  BundleWriter(const std::string& path, const BundleShape& shape, BundleTables tables);
  absl::Status Open();
  // With the sizes and places of the tables; their checksums are missing.
  BundleHeader Header() const;
  // Copies what the piece has of the run's neurons: that of each group `stride` bytes after the one
  // before, padded with zeros.
  void Arrange(const BundleRun& run, absl::Span<const std::byte> bundles, uint32_t piece,
               size_t stride, std::byte* to) const;
  // Starts writing these pages of groups and keeps their checksums.
  void AddRequest(Staging& staging, size_t index, uint64_t offset, absl::Span<std::byte> bytes);
  absl::Status WaitFor(Staging& staging);
  absl::Status WriteTable(absl::Span<const std::byte> bytes, BundleExtent& extent);
  absl::Status WritePages(uint64_t offset, const AlignedBuffer& pages);
  absl::Status Sync();

  const std::string path_;
  const std::string temporary_;
  const BundleShape shape_;
  const BundleTables tables_;
  uint32_t run_places_ = 0;
  std::unique_ptr<BlockDevice> device_;
  std::array<Staging, 2> staging_;
  size_t next_staging_ = 0;
  std::vector<PageChecksum> checksums_;  // [data pages]
  uint64_t written_groups_ = 0;
  bool owns_temporary_ = false;
  absl::Status status_;
};

// Fills bundles of a run: [run.places, parts, width] in the shape's dtype.
using BundleSource =
    absl::FunctionRef<absl::Status(const BundleRun& run, absl::Span<std::byte> bundles)>;

// Writes a whole file, run by run in the order of the file. An error of the source ends it and
// leaves nothing behind.
absl::Status WriteBundleFile(const std::string& path, const BundleShape& shape, BundleTables tables,
                             BundleSource source);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_BUNDLE_WRITER_H_
