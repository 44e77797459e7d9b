// Feeds arbitrary bytes to the reader of bundle files, as the pages of a device. The first byte
// says whether the checksums of header and tables are repaired first, so that what lies behind them
// is reached.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "io/memory_device.h"
#include "runtime/bundle_file.h"
#include "runtime/bundle_header.h"

namespace terrace {
namespace {

constexpr size_t kExtents = 72;  // where the header has the extents of its tables

void CheckThat(bool condition, const char* promise) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

// Of every table that lies within the bytes, then of the header.
void Repair(absl::Span<std::byte> bytes) {
  for (size_t i = 0; i < kBundleTables; ++i) {
    std::byte* const at = bytes.data() + kExtents + i * sizeof(BundleExtent);
    BundleExtent extent;
    std::memcpy(&extent, at, sizeof(extent));
    if (extent.offset > bytes.size() || extent.bytes > bytes.size() - extent.offset) continue;
    extent.checksum = Checksum64(bytes.subspan(extent.offset, extent.bytes));
    std::memcpy(at, &extent, sizeof(extent));
  }
  const absl::Span<std::byte> page = bytes.first(kPageBytes);
  const uint64_t checksum = Checksum64(page.subspan(sizeof(uint64_t)));
  std::memcpy(page.data(), &checksum, sizeof(checksum));
}

void CheckFile(const BundleFile& file, absl::Span<std::byte> bytes) {
  const BundleShape& shape = file.shape();
  CheckThat(shape.Validate().ok() && file.tables().Validate(shape).ok(), "what opens is valid");
  CheckThat(file.file_bytes() == bytes.size(), "what opens has its size");
  for (uint64_t at = BundleShape::kDataOffset; at < shape.data_end(); at += kPageBytes) {
    const absl::Status status = file.Verify(at, bytes.subspan(at, kPageBytes));
    CheckThat(status.ok() || absl::IsDataLoss(status), "pages are right or lost");
    const BundlePosition place = shape.PositionOf(at);
    const uint64_t start = shape.PieceOffset(place.unit, place.group, place.piece);
    CheckThat(start <= at && at < start + shape.piece_bytes(place.piece), "pages have one place");
  }
  for (uint32_t unit = 0; unit < shape.units(); ++unit) {
    const std::vector<uint32_t> places = file.PlacesOf(unit);
    for (uint32_t neuron = 0; neuron < shape.neurons; ++neuron) {
      CheckThat(file.NeuronAt(unit, places[neuron]) == neuron, "the order is a permutation");
    }
  }
  const absl::StatusOr<BundleHeader> header = DecodeBundleHeader(bytes.first(kPageBytes));
  CheckThat(header.ok(), "what opens has a header");
  std::byte again[kPageBytes];
  EncodeBundleHeader(*header, again);
  const absl::StatusOr<BundleHeader> same = DecodeBundleHeader(again);
  CheckThat(same.ok() && *same == *header, "headers survive writing");
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  terrace::MemoryDeviceOptions options;
  options.size_bytes = terrace::PageAlignUp(size - 1);
  const auto device = terrace::MemoryDevice::Create(options);
  if (!device.ok()) return 0;
  const absl::Span<std::byte> bytes = (*device)->bytes();
  std::memcpy(bytes.data(), data + 1, size - 1);
  if ((data[0] & 1) != 0) terrace::Repair(bytes);
  const auto file = terrace::BundleFile::Read(**device);
  if (file.ok()) {
    terrace::CheckFile(**file, bytes);
  } else {
    terrace::CheckThat(!file.status().message().empty(), "errors say what is wrong");
  }
  return 0;
}
