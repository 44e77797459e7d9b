#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/cluster_table.h"
#include "index/vector_bytes.h"
#include "xxhash.h"

// A ClusterTable as bytes: a header, the matrix of the query space, and the segments one after the
// other, each with its counts first. Integers and floats are little-endian, as all that Terrace
// stores.
namespace terrace {
namespace {

constexpr uint32_t kMagic = 0x54435254;  // "TRCT"
constexpr uint32_t kVersion = 2;

struct Header {
  uint32_t magic = kMagic;
  uint32_t version = kVersion;
  uint32_t head_dim = 0;
  uint32_t has_values = 0;
  uint32_t matrix_rows = 0;  // 0: the keys' own space
  uint32_t cluster_keys = 0;
  uint32_t segments = 0;
  uint16_t code_bits = 0;
  uint16_t code_dimensions = 0;
  uint64_t body_bytes = 0;
  uint64_t checksum = 0;  // XXH3-64 of the header, in which this is 0, and the body with that seed
};

uint64_t ChecksumOf(Header header, absl::Span<const std::byte> body) {
  header.checksum = 0;
  return XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(&header, sizeof(header)));
}

bool AllFinite(const std::vector<float>& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
}

bool AllFiniteAndPositive(const std::vector<float>& numbers) {
  return AllFinite(numbers) &&
         std::all_of(numbers.begin(), numbers.end(), [](float x) { return x >= 0; });
}

bool FiniteScales(const SummaryLayout& layout, const std::vector<std::byte>& summaries) {
  if (summaries.empty()) return true;
  const absl::Span<const float> scales(layout.scales(summaries.data()), layout.count);
  return std::all_of(scales.begin(), scales.end(),
                     [](float scale) { return std::isfinite(scale) && scale >= 0; });
}

// Whether places are each given to one key.
bool Consistent(const SegmentClusters& clusters) {
  const size_t keys = clusters.order.size();
  std::vector<bool> seen(keys);
  for (const uint16_t key : clusters.order) {
    if (key >= keys || seen[key]) return false;
    seen[key] = true;
  }
  return AllFiniteAndPositive(clusters.spreads) && AllFiniteAndPositive(clusters.shape);
}

}  // namespace

void ClusterTable::Save(std::vector<std::byte>& bytes) const {
  const size_t start = bytes.size();
  bytes.resize(start + sizeof(Header));
  const std::vector<float> matrix(space_.matrix().begin(), space_.matrix().end());
  WriteVector(matrix, bytes);
  for (const Segment& segment : segments_) {
    WriteVector(std::vector<uint32_t>{static_cast<uint32_t>(segment.clusters.clusters())}, bytes);
    WriteVector(segment.clusters.order, bytes);
    WriteVector(segment.clusters.spreads, bytes);
    WriteVector(segment.clusters.shape, bytes);
    WriteVector(segment.clusters.codes, bytes);
    WriteVector(segment.mean, bytes);
    WriteVector(segment.key_means, bytes);
    WriteVector(segment.value_means, bytes);
  }
  Header header;
  header.head_dim = static_cast<uint32_t>(options_.head_dim);
  header.has_values = options_.has_values ? 1 : 0;
  header.matrix_rows = static_cast<uint32_t>(matrix.size() / options_.head_dim);
  header.cluster_keys = static_cast<uint32_t>(cluster_keys());
  header.code_bits = static_cast<uint16_t>(Residuals().bits);
  header.code_dimensions = static_cast<uint16_t>(Residuals().dimensions);
  header.segments = static_cast<uint32_t>(segments_.size());
  header.body_bytes = bytes.size() - start - sizeof(Header);
  header.checksum = ChecksumOf(header, absl::MakeConstSpan(bytes).subspan(start + sizeof(Header)));
  std::memcpy(bytes.data() + start, &header, sizeof(header));
}

absl::StatusOr<ClusterTable> ClusterTable::Load(const ClusterTableOptions& options,
                                                absl::Span<const std::byte> bytes) {
  Header header;
  if (bytes.size() < sizeof(header)) {
    return absl::DataLossError(
        absl::StrCat("cluster table: ", bytes.size(), " bytes are less than a header"));
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  const absl::Span<const std::byte> body = bytes.subspan(sizeof(header));
  if (header.magic != kMagic || header.body_bytes != body.size() ||
      header.checksum != ChecksumOf(header, body)) {
    return absl::DataLossError(
        absl::StrCat("cluster table: header or checksum does not match ", bytes.size(), " bytes"));
  }
  if (header.version != kVersion || header.head_dim != options.head_dim ||
      header.cluster_keys != options.clustering.cluster_keys ||
      (header.has_values != 0) != options.has_values) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cluster table: version ", header.version, " with a head_dim of ", header.head_dim, ", ",
        header.cluster_keys, " keys a cluster and", header.has_values != 0 ? "" : " no",
        " values, expected version ", kVersion, ", ", options.head_dim, ", ",
        options.clustering.cluster_keys, " and", options.has_values ? "" : " no", " values"));
  }
  const size_t head_dim = options.head_dim;
  VectorReader reader(body);
  std::vector<float> matrix;
  if (header.matrix_rows > head_dim || !reader.Read(header.matrix_rows * head_dim, matrix) ||
      !AllFinite(matrix)) {
    return absl::DataLossError("cluster table: the matrix of the query space is damaged");
  }
  absl::StatusOr<ClusterTable> table = Create(options, QuerySpace(head_dim, std::move(matrix)));
  if (!table.ok()) return table.status();
  const ResidualShape residuals = table->Residuals();
  if (header.code_bits != residuals.bits || header.code_dimensions != residuals.dimensions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cluster table: codes of ", header.code_bits, " bits for ", header.code_dimensions,
        " dimensions, expected ", residuals.bits, " for ", residuals.dimensions));
  }
  for (size_t i = 0; i < header.segments; ++i) {
    Segment segment;
    SegmentClusters& clusters = segment.clusters;
    std::vector<uint32_t> count;
    const bool whole =
        reader.Read(1, count) && count[0] > 0 &&
        count[0] <= kSegmentKeys / options.clustering.cluster_keys &&
        reader.Read(count[0] * options.clustering.cluster_keys, clusters.order) &&
        reader.Read(count[0], clusters.spreads) &&
        reader.Read(table->space_.dimensions(), clusters.shape) &&
        reader.Read(residuals.size(clusters.order.size()), clusters.codes) &&
        reader.Read(head_dim, segment.mean) &&
        reader.Read(table->Layout(count[0]).bytes(), segment.key_means) &&
        reader.Read(options.has_values ? table->Layout(count[0]).bytes() : 0, segment.value_means);
    const SummaryLayout layout = table->Layout(clusters.spreads.size());
    if (!whole || !Consistent(clusters) || !AllFinite(segment.mean) ||
        !FiniteScales(layout, segment.key_means) || !FiniteScales(layout, segment.value_means)) {
      return absl::DataLossError(absl::StrCat("cluster table: segment ", i, " is damaged"));
    }
    table->Take(std::move(segment));
  }
  if (!reader.empty()) {
    return absl::DataLossError("cluster table: bytes follow the last segment");
  }
  return table;
}

}  // namespace terrace
