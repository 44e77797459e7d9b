#include "runtime/bundle_header.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little, "records are copied as they lie");

constexpr uint64_t kMagic = 0x4c444e4245435254;  // "TRCEBNDL"

// As it lies in the page.
struct RawHeader {
  uint64_t checksum = 0;  // of the rest of the page
  uint64_t magic = 0;
  uint32_t version = 0;
  uint32_t layers = 0;
  uint32_t experts = 0;
  uint32_t neurons = 0;
  uint32_t width = 0;
  uint32_t group_neurons = 0;
  uint8_t gated = 0;
  uint8_t activation = 0;
  uint8_t dtype = 0;
  uint8_t layout = 0;
  uint32_t reserved = 0;
  uint64_t model_fingerprint = 0;
  double false_negative_bound = 0;
  uint64_t file_bytes = 0;
  BundleExtent tables[kBundleTables] = {};
};
static_assert(sizeof(RawHeader) == 72 + 24 * kBundleTables && sizeof(RawHeader) <= kPageBytes);

uint64_t PageChecksumOf(absl::Span<const std::byte> page) {
  return Checksum64(page.subspan(sizeof(uint64_t)));
}

absl::StatusOr<BundleShape> ShapeOf(const RawHeader& raw) {
  const auto bad = [](const char* field, uint64_t value) {
    return absl::InvalidArgumentError(absl::StrCat("bundles: ", field, ": ", value, " is unknown"));
  };
  if (raw.gated > 1) return bad("gated", raw.gated);
  if (raw.activation > static_cast<uint8_t>(Activation::kRelu)) {
    return bad("activation", raw.activation);
  }
  if (raw.dtype > static_cast<uint8_t>(KvDtype::kBfloat16)) return bad("dtype", raw.dtype);
  if (raw.layout > static_cast<uint8_t>(BundleLayout::kUnbundled)) return bad("layout", raw.layout);
  BundleShape shape;
  shape.layers = raw.layers;
  shape.experts = raw.experts;
  shape.neurons = raw.neurons;
  shape.width = raw.width;
  shape.gated = raw.gated != 0;
  shape.activation = static_cast<Activation>(raw.activation);
  shape.dtype = static_cast<KvDtype>(raw.dtype);
  shape.layout = static_cast<BundleLayout>(raw.layout);
  shape.group_neurons = raw.group_neurons;
  if (absl::Status status = shape.Validate(); !status.ok()) return status;
  return shape;
}

// The bytes that a table has when it is there; 0 for predictors, whose ranks are their own affair.
uint64_t TableBytes(const BundleShape& shape, BundleTable table) {
  switch (table) {
    case BundleTable::kChecksums:
      return shape.data_bytes() / kPageBytes * sizeof(PageChecksum);
    case BundleTable::kOrder:
      return shape.all_neurons() * sizeof(uint32_t);
    case BundleTable::kFrequency:
      return shape.all_neurons() * sizeof(float);
    case BundleTable::kPredictors:
      return 0;
  }
  return 0;
}

uint64_t MaxPredictorBytes(const BundleShape& shape) {
  const uint64_t unit =
      sizeof(uint32_t) +
      sizeof(uint16_t) * kMaxPredictorRank * (uint64_t{shape.width} + uint64_t{shape.neurons}) +
      sizeof(float) * uint64_t{shape.neurons};
  return shape.units() * unit;
}

absl::Status CheckExtents(const BundleHeader& header) {
  uint64_t at = header.shape.data_end();
  for (size_t i = 0; i < kBundleTables; ++i) {
    const auto table = static_cast<BundleTable>(i);
    const BundleExtent& extent = header.tables[i];
    const uint64_t expected = TableBytes(header.shape, table);
    const bool fits =
        table == BundleTable::kPredictors
            ? extent.bytes <= MaxPredictorBytes(header.shape)
            : extent.bytes == expected || (extent.bytes == 0 && table != BundleTable::kChecksums);
    if (!fits || extent.offset != at) {
      return absl::InvalidArgumentError(absl::StrCat(
          "bundles: ", BundleTableName(table), ": ", extent.bytes, " bytes at offset ",
          extent.offset, " are not what the shape implies (", expected, " at ", at, ")"));
    }
    at += PageAlignUp(extent.bytes);
  }
  if (at == header.file_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("bundles: file_bytes: ", header.file_bytes, " is not ", at));
}

}  // namespace

const char* BundleTableName(BundleTable table) {
  switch (table) {
    case BundleTable::kChecksums:
      return "page checksums";
    case BundleTable::kOrder:
      return "order";
    case BundleTable::kFrequency:
      return "frequencies";
    case BundleTable::kPredictors:
      return "predictors";
  }
  return "unknown";
}

void PlaceTables(BundleHeader& header) {
  uint64_t at = header.shape.data_end();
  for (BundleExtent& extent : header.tables) {
    extent.offset = at;
    at += PageAlignUp(extent.bytes);
  }
  header.file_bytes = at;
}

void EncodeBundleHeader(const BundleHeader& header, absl::Span<std::byte> page) {
  TERRACE_CHECK_EQ(page.size(), kPageBytes);
  RawHeader raw;
  raw.magic = kMagic;
  raw.version = BundleHeader::kVersion;
  raw.layers = header.shape.layers;
  raw.experts = header.shape.experts;
  raw.neurons = header.shape.neurons;
  raw.width = header.shape.width;
  raw.group_neurons = header.shape.group_neurons;
  raw.gated = header.shape.gated ? 1 : 0;
  raw.activation = static_cast<uint8_t>(header.shape.activation);
  raw.dtype = static_cast<uint8_t>(header.shape.dtype);
  raw.layout = static_cast<uint8_t>(header.shape.layout);
  raw.model_fingerprint = header.model_fingerprint;
  raw.false_negative_bound = header.false_negative_bound;
  raw.file_bytes = header.file_bytes;
  for (size_t i = 0; i < kBundleTables; ++i) raw.tables[i] = header.tables[i];
  std::memset(page.data(), 0, page.size());
  std::memcpy(page.data(), &raw, sizeof(raw));
  const uint64_t checksum = PageChecksumOf(page);
  std::memcpy(page.data(), &checksum, sizeof(checksum));
}

absl::StatusOr<BundleHeader> DecodeBundleHeader(absl::Span<const std::byte> page) {
  TERRACE_CHECK_EQ(page.size(), kPageBytes);
  RawHeader raw;
  std::memcpy(&raw, page.data(), sizeof(raw));
  if (raw.magic != kMagic) return absl::InvalidArgumentError("not a bundle file");
  if (raw.version != BundleHeader::kVersion) {
    return absl::InvalidArgumentError(absl::StrCat("bundles: version ", raw.version,
                                                   " is not the one that this program reads, ",
                                                   BundleHeader::kVersion));
  }
  if (raw.checksum != PageChecksumOf(page)) {
    return absl::DataLossError("bundles: the checksum of the header is wrong");
  }
  const absl::StatusOr<BundleShape> shape = ShapeOf(raw);
  if (!shape.ok()) return shape.status();
  BundleHeader header;
  header.shape = *shape;
  header.model_fingerprint = raw.model_fingerprint;
  header.false_negative_bound = raw.false_negative_bound;
  if (!(header.false_negative_bound >= 0 && header.false_negative_bound <= 1)) {
    return absl::InvalidArgumentError("bundles: false_negative_bound: is not from 0 to 1");
  }
  header.file_bytes = raw.file_bytes;
  for (size_t i = 0; i < kBundleTables; ++i) header.tables[i] = raw.tables[i];
  if (absl::Status status = CheckExtents(header); !status.ok()) return status;
  return header;
}

size_t PredictorTableBytes(absl::Span<const PredictorFactors> predictors) {
  size_t bytes = 0;
  for (const PredictorFactors& factors : predictors) {
    bytes += sizeof(factors.rank) + factors.bytes();
  }
  return bytes;
}

void EncodePredictors(absl::Span<const PredictorFactors> predictors, absl::Span<std::byte> bytes) {
  TERRACE_CHECK_EQ(bytes.size(), PredictorTableBytes(predictors));
  std::byte* to = bytes.data();
  const auto put = [&to](const void* from, size_t size) {
    std::memcpy(to, from, size);
    to += size;
  };
  for (const PredictorFactors& factors : predictors) {
    put(&factors.rank, sizeof(factors.rank));
    put(factors.a.data(), factors.a.size() * sizeof(uint16_t));
    put(factors.b.data(), factors.b.size() * sizeof(uint16_t));
    put(factors.thresholds.data(), factors.thresholds.size() * sizeof(float));
  }
}

absl::StatusOr<std::vector<PredictorFactors>> DecodePredictors(const BundleShape& shape,
                                                               absl::Span<const std::byte> bytes) {
  const absl::Status too_short =
      absl::InvalidArgumentError("bundles: predictors: shorter than their ranks say");
  std::vector<PredictorFactors> predictors;
  if (bytes.empty()) return predictors;
  for (uint32_t unit = 0; unit < shape.units(); ++unit) {
    PredictorFactors factors;
    if (bytes.size() < sizeof(factors.rank)) return too_short;
    std::memcpy(&factors.rank, bytes.data(), sizeof(factors.rank));
    bytes.remove_prefix(sizeof(factors.rank));
    if (factors.rank < 1 || factors.rank > kMaxPredictorRank) {
      return absl::InvalidArgumentError(absl::StrCat("bundles: predictor ", unit, ": rank ",
                                                     factors.rank, " is not from 1 to ",
                                                     kMaxPredictorRank));
    }
    const size_t a = size_t{factors.rank} * shape.width;
    const size_t b = size_t{factors.rank} * shape.neurons;
    if (bytes.size() < sizeof(uint16_t) * (a + b) + sizeof(float) * shape.neurons) return too_short;
    const auto take = [&bytes](auto& values, size_t count) {
      values.resize(count);
      const size_t size = count * sizeof(values[0]);
      std::memcpy(values.data(), bytes.data(), size);
      bytes.remove_prefix(size);
    };
    take(factors.a, a);
    take(factors.b, b);
    take(factors.thresholds, shape.neurons);
    predictors.push_back(std::move(factors));
  }
  if (bytes.empty()) return predictors;
  return absl::InvalidArgumentError(
      absl::StrCat("bundles: predictors: ", bytes.size(), " bytes more than their ranks say"));
}

}  // namespace terrace
