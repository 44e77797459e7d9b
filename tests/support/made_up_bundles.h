#ifndef TERRACE_TESTS_SUPPORT_MADE_UP_BUNDLES_H_
#define TERRACE_TESTS_SUPPORT_MADE_UP_BUNDLES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/bundle_file.h"
#include "runtime/bundle_shape.h"
#include "runtime/bundle_writer.h"

namespace terrace {

// Byte `index` of the bundle of the neuron at a place, which no other place has.
inline std::byte MadeUpByte(uint32_t unit, uint32_t place, size_t index) {
  return static_cast<std::byte>((unit * 131 + place * 31 + index * 7) & 0xff);
}

inline absl::Status FillMadeUpBundles(const BundleShape& shape, const BundleRun& run,
                                      absl::Span<std::byte> bundles) {
  for (size_t i = 0; i < bundles.size(); ++i) {
    const auto place = static_cast<uint32_t>(i / shape.bundle_bytes());
    bundles[i] = MadeUpByte(run.unit, run.first_place + place, i % shape.bundle_bytes());
  }
  return absl::OkStatus();
}

// Tables of every kind: places in reverse order, frequencies that fall, predictors of rank 3.
inline BundleTables MadeUpTables(const BundleShape& shape) {
  BundleTables tables;
  tables.model_fingerprint = 0x1234567890abcdef;
  tables.false_negative_bound = 0.25;
  for (uint32_t unit = 0; unit < shape.units(); ++unit) {
    PredictorFactors factors;
    factors.rank = 3;
    factors.a.assign(size_t{3} * shape.width, 0x3c00);
    factors.b.assign(size_t{3} * shape.neurons, 0xbc00);
    factors.thresholds.assign(shape.neurons, 0.5f);
    tables.predictors.push_back(factors);
    for (uint32_t place = 0; place < shape.neurons; ++place) {
      tables.order.push_back(shape.neurons - 1 - place);
      tables.frequency.push_back(1.0f / static_cast<float>(1 + place));
    }
  }
  return tables;
}

inline absl::Status WriteMadeUpBundles(const std::string& path, const BundleShape& shape,
                                       const BundleTables& tables) {
  return WriteBundleFile(path, shape, tables,
                         [&shape](const BundleRun& run, absl::Span<std::byte> bundles) {
                           return FillMadeUpBundles(shape, run, bundles);
                         });
}

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_MADE_UP_BUNDLES_H_
