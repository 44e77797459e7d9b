#ifndef TERRACE_RUNTIME_WEIGHT_PAGER_H_
#define TERRACE_RUNTIME_WEIGHT_PAGER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/bundle_file.h"
#include "runtime/weight_pager_options.h"

namespace terrace {

// Since Open, but for what is said to be the state now. Seconds are of wall-clock time unless said.
struct WeightPagerStats {
  uint64_t tokens = 0;  // BeginToken calls

  // Rows that Require named: in memory, on their way there by a prefetch, or neither.
  uint64_t required_rows = 0;
  uint64_t hit_rows = 0;
  uint64_t joined_rows = 0;
  uint64_t missed_rows = 0;
  uint64_t prefetched_rows = 0;  // reads that Prefetch began
  uint64_t dropped_prefetches = 0;  // rows that it found no room or no request for
  uint64_t evicted_rows = 0;
  uint64_t moved_rows = 0;  // the last row of a layer, copied into a hole

  uint64_t reads = 0;          // requests
  uint64_t read_bytes = 0;     // brought by the device, gaps included
  uint64_t wanted_bytes = 0;   // of those, what was asked for: whole pages of rows
  uint64_t pinned_bytes = 0;   // read at Open, in neither of the above
  uint64_t rereads = 0;        // after an error or wrong bytes
  uint64_t failed_rows = 0;    // that stayed wrong, each the error of a step

  // Where the time of Require, Prefetch, Ffn and DenseFfn goes. These three add up to it.
  double management_seconds = 0;  // slots, windows, plans of reads and their submission
  double compute_seconds = 0;     // kernels, checksums included
  double wait_seconds = 0;        // for reads, with nothing left to compute
  double io_seconds = 0;          // some read was under way, whatever else went on
  double verify_seconds = 0;      // of checksums, over all threads, within compute_seconds

  // Now.
  uint64_t resident_rows = 0;
  uint64_t capacity_rows = 0;
  uint64_t pinned_rows = 0;
  double window_tokens = 0;  // how long ago the oldest row of a layer was used, mean over layers
};

// Runs feed-forward layers whose weights are in a bundle file and only partly in memory
// (Alizadeh et al., "LLM in a flash: Efficient Large Language Model Inference with Limited Memory",
// 2023, sections 3 and 4).
//
// Each layer has a matrix of rows in memory, one for each group of neurons, or for each expert. The
// first of them hold what is hot, for good; the others the window, the rows that the last tokens
// used. A token brings only what the window lacks, straight into rows, by reads that run together.
//
// For each token and layer, in this order:
//
//   pager->BeginToken();                         // once a token, or batch of tokens
//   pager->Require(layer, places);               // its reads begin
//   pager->Prefetch(layer + 1, guessed_places);  // optional: reads that come behind these
//   pager->Ffn(layer, x, out);                   // computes what is there, then what arrives
//
// Neurons are named by their *place* in the bundle file (BundleFile::PlacesOf); place p of expert e
// is e * shape.neurons + p. All neurons of a row that is required are computed; with ReLU, one
// that does not fire adds exactly nothing. What Ffn returns depends neither on what was in memory,
// nor on the number of threads, nor on when reads arrive: the same neurons give the same bits, and
// with ReLU so do all sets of them that hold those that fire, DenseFfn's included
// (compute_resident gives that up).
//
// A read that fails or brings wrong bytes is repeated; when that does not help, Ffn returns
// kDataLoss (path, offset, layer, group), the row is not in memory, and the pager can be used on.
//
// Thread-compatible: one thread at a time calls it. Nothing is allocated after Open but where a
// call is larger than any before.
class WeightPager {
 public:
  // kInvalidArgument naming the option; kInvalidArgument with needed and given bytes when the
  // memory cannot hold the least that each layer needs, see MinDramBytes; those of OpenFileDevice
  // and of memory; kDataLoss when pinned rows are wrong.
  static absl::StatusOr<std::unique_ptr<WeightPager>> Open(std::shared_ptr<const BundleFile> file,
                                                           const WeightPagerOptions& options);
  // The same with a device of the caller's, which holds the file's bytes.
  static absl::StatusOr<std::unique_ptr<WeightPager>> Open(std::shared_ptr<const BundleFile> file,
                                                           const WeightPagerOptions& options,
                                                           std::unique_ptr<BlockDevice> device);
  virtual ~WeightPager() = default;

  // The least dram_bytes that Open takes.
  static uint64_t MinDramBytes(const BundleShape& shape, const WeightPagerOptions& options);

  // A token, or a batch of them, begins: the window moves on.
  virtual void BeginToken() = 0;

  // Begins to read those rows of `places` that are not in memory, and returns. Any order,
  // repetitions allowed, any number: more than the layer's memory holds pass through it in turns.
  // Replaces what was required and not computed. kInvalidArgument for a layer or place out of
  // range.
  virtual absl::Status Require(uint32_t layer, absl::Span<const uint32_t> places) = 0;
  // The same for all neurons of some experts.
  virtual absl::Status RequireExperts(uint32_t layer, absl::Span<const uint32_t> experts) = 0;

  // A hint that `places` of the layer may be required soon: reads behind all that Require began,
  // into rows that nothing needs more. Ignored and counted where there is no room, and out of
  // range. Between Require and Ffn of another layer it overlaps with them.
  virtual void Prefetch(uint32_t layer, absl::Span<const uint32_t> places) = 0;
  virtual void PrefetchExperts(uint32_t layer, absl::Span<const uint32_t> experts) = 0;

  // out[t] = sum over required neurons of down * activation(gate x[t]) * (up x[t]), or without a
  // gate of down * activation(up x[t]). x and out: [tokens, width], one token or several whose
  // neurons were required together. REQUIRES: `layer` is the one that was required; sizes are whole
  // multiples of the width and the same.
  virtual absl::Status Ffn(uint32_t layer, absl::Span<const float> x, absl::Span<float> out) = 0;
  // The same with a weight for each expert of the layer and token, [tokens, experts], such as a
  // router gives: each expert's sum is multiplied by it.
  virtual absl::Status FfnExperts(uint32_t layer, absl::Span<const float> x,
                                  absl::Span<const float> expert_weights,
                                  absl::Span<float> out) = 0;

  // As Ffn with every neuron of the layer: what is not in memory streams through staging, once for
  // all tokens, and the window stays as it is. For prompts, and as the reference. Needs no Require.
  virtual absl::Status DenseFfn(uint32_t layer, absl::Span<const float> x,
                                absl::Span<float> out) = 0;

  virtual const BundleFile& file() const = 0;
  // What the device turned out to be.
  virtual const DeviceInfo& device_info() const = 0;
  // Bytes of memory that it took at Open; at most options.dram_bytes.
  virtual uint64_t memory_bytes() const = 0;
  virtual WeightPagerStats Stats() const = 0;
  // Whether the row of this place is in memory and was verified or will be before use.
  virtual bool IsResident(uint32_t layer, uint32_t place) const = 0;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_WEIGHT_PAGER_H_
