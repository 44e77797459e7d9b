#ifndef TERRACE_TESTS_SUPPORT_BUNDLE_SAMPLE_H_
#define TERRACE_TESTS_SUPPORT_BUNDLE_SAMPLE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "io/memory_device.h"
#include "runtime/bundle_file.h"
#include "tests/support/temp_dir.h"

namespace terrace {

// A bundle file of random weights in a directory of its own, and what is in it.
class BundleSample {
 public:
  // Deviation 1 / sqrt(width). Frequencies: empty, or those of each place, [units, neurons].
  BundleSample(const BundleShape& shape, uint64_t seed, std::vector<float> frequency = {});

  const BundleShape& shape() const { return shape_; }
  const std::string& path() const { return path_; }
  const std::shared_ptr<const BundleFile>& file() const { return file_; }
  // The file's bytes as a device.
  std::unique_ptr<MemoryDevice> Device(size_t depth = 64) const;
  // A part of the neuron at a place of a layer, [width].
  absl::Span<const float> Part(uint32_t layer, uint32_t place, uint32_t part) const;
  // The layer over some places, for one token of x, [width], in float64. Expert weights: [experts],
  // or empty.
  std::vector<double> Reference(uint32_t layer, absl::Span<const float> x,
                                absl::Span<const uint32_t> places,
                                absl::Span<const float> expert_weights = {}) const;
  // The places of a layer whose activation is not zero.
  std::vector<uint32_t> Firing(uint32_t layer, absl::Span<const float> x) const;

 private:
  double PreActivation(uint32_t layer, uint32_t place, absl::Span<const float> x) const;

  const BundleShape shape_;
  const TempDir dir_;
  std::string path_;
  std::vector<float> weights_;  // [units, neurons, parts, width]
  std::shared_ptr<const BundleFile> file_;
};

// All places of a layer.
std::vector<uint32_t> AllPlaces(const BundleShape& shape);

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_BUNDLE_SAMPLE_H_
