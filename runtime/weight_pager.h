#ifndef TERRACE_RUNTIME_WEIGHT_PAGER_H_
#define TERRACE_RUNTIME_WEIGHT_PAGER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "io/aligned_buffer.h"
#include "runtime/bundle_file.h"
#include "runtime/sparse_ffn.h"
#include "runtime/weight_layout.h"
#include "runtime/weight_pager_options.h"
#include "runtime/weight_reader.h"
#include "runtime/weight_rows.h"

namespace terrace {

// Since Open, but for what is said to be the state now. Seconds are of wall-clock time unless said.
struct WeightPagerStats {
  uint64_t tokens = 0;  // BeginToken calls

  // Rows that Require named: in memory, on their way there by a prefetch, or neither.
  uint64_t required_rows = 0;
  uint64_t hit_rows = 0;
  uint64_t joined_rows = 0;
  uint64_t missed_rows = 0;
  uint64_t prefetched_rows = 0;     // reads that Prefetch began
  uint64_t used_prefetches = 0;     // of those rows, which Require named before they went again
  uint64_t dropped_prefetches = 0;  // rows that it found no room or no request for
  uint64_t evicted_rows = 0;
  uint64_t moved_rows = 0;  // the last row of a layer, copied into a hole

  uint64_t reads = 0;         // requests
  uint64_t read_bytes = 0;    // brought by the device, gaps included
  uint64_t wanted_bytes = 0;  // of those, what was asked for: whole pages of rows
  uint64_t pinned_bytes = 0;  // read at Open, in neither of the above
  uint64_t rereads = 0;       // after an error or wrong bytes
  uint64_t failed_rows = 0;   // that stayed wrong, each the error of a step

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
// kDataLoss (path, layer, first group of the row, and what was wrong), the row is not in memory,
// and the pager can be used on.
//
// Thread-compatible: one thread at a time calls it. Nothing is allocated after Open but where a
// call is larger than any before.
class WeightPager {
 public:
  // kInvalidArgument naming the option; kInvalidArgument with needed and given bytes when the
  // memory cannot hold the least that each layer needs, see MinDramBytes; kResourceExhausted when
  // the budget has not that much; those of OpenFileDevice and of memory.
  static absl::StatusOr<std::unique_ptr<WeightPager>> Open(std::shared_ptr<const BundleFile> file,
                                                           const WeightPagerOptions& options);
  // The same with a device of the caller's, which holds the file's bytes.
  static absl::StatusOr<std::unique_ptr<WeightPager>> Open(std::shared_ptr<const BundleFile> file,
                                                           const WeightPagerOptions& options,
                                                           std::unique_ptr<BlockDevice> device);
  ~WeightPager();

  // The least dram_bytes that Open takes: tables, the least staging, and a row of each layer.
  // REQUIRES: valid shape and options but for dram_bytes.
  static uint64_t MinDramBytes(const BundleShape& shape, const WeightPagerOptions& options);

  // A token, or a batch of them, begins: the window moves on.
  void BeginToken();

  // Begins to read those rows of `places` that are not in memory, and returns. Any order,
  // repetitions allowed, any number: what the layer's memory has no room for passes through
  // staging. Replaces what was required and not computed. kInvalidArgument for a layer or place
  // out of range.
  absl::Status Require(uint32_t layer, absl::Span<const uint32_t> places);
  // The same for all neurons of some experts.
  absl::Status RequireExperts(uint32_t layer, absl::Span<const uint32_t> experts);

  // A hint that `places` of the layer may be required soon: reads behind all that Require began,
  // into rows that nothing needs more. Ignored and counted where there is no room; what is out of
  // range is ignored. Between Require and Ffn of another layer it overlaps with them.
  void Prefetch(uint32_t layer, absl::Span<const uint32_t> places);
  void PrefetchExperts(uint32_t layer, absl::Span<const uint32_t> experts);

  // out[t] = sum over required neurons of down * activation(gate x[t]) * (up x[t]), or without a
  // gate of down * activation(up x[t]). x and out: [tokens, width], one token or several whose
  // neurons were required together. kFailedPrecondition unless the last Require of this token was
  // of this layer; kInvalidArgument for sizes that are not the same multiple of the width;
  // kDataLoss for rows that could not be read, after which `out` is undefined.
  absl::Status Ffn(uint32_t layer, absl::Span<const float> x, absl::Span<float> out);
  // The same with a weight for each expert of the layer and token, [tokens, experts], such as a
  // router gives: each expert's sum is multiplied by it.
  absl::Status FfnExperts(uint32_t layer, absl::Span<const float> x,
                          absl::Span<const float> expert_weights, absl::Span<float> out);

  // As Ffn with every neuron of the layer: what is not in memory streams through staging, once for
  // all tokens, and the window stays as it is. For prompts, and as the reference. Needs no Require,
  // and replaces what was required.
  absl::Status DenseFfn(uint32_t layer, absl::Span<const float> x, absl::Span<float> out);

  const BundleFile& file() const { return *file_; }
  // What the device turned out to be.
  const DeviceInfo& device_info() const { return reader_->device_info(); }
  // Bytes of memory that it took at Open; at most options.dram_bytes.
  uint64_t memory_bytes() const { return memory_bytes_; }
  WeightPagerStats Stats() const;
  // Whether the row of this place is in memory, all of it, and its bytes verified or to be verified
  // before use.
  bool IsResident(uint32_t layer, uint32_t place) const;

 private:
  static constexpr uint32_t kManyReads = WeightReader::kNoRead - 1;
  // What the bytes of a slot are.
  struct SlotState {
    std::array<uint32_t, WeightLayout::kMaxFragments> pending = {};  // reads of each fragment
    uint8_t have = 0;      // fragments that arrived; a bit each
    uint8_t verified = 0;  // of those, which were what was packed
    uint8_t failed = 0;    // fragments of which some read failed
    bool guessed = false;  // Prefetch brought it, and nobody required it yet
    // That the last Prefetch began, or kManyReads.
    uint32_t read = WeightReader::kNoRead;

    bool reading() const { return pending != decltype(pending){}; }
  };
  struct Layer {
    WeightRows rows;
    std::vector<SlotState> slots;  // [capacity]
    std::byte* memory = nullptr;   // [capacity, row_bytes]
    uint32_t pinned = 0;           // the first slots
  };
  // A row that the step under way needs.
  struct Entry {
    uint32_t row = 0;
    uint32_t slot = WeightRows::kNone;  // none: it passes through staging
    uint32_t first_group = 0;           // in groups_
    size_t attempts = 0;                // reads that went wrong
    bool gate_done = false;
    bool queued = false;  // in ready_
    bool done = false;
  };
  // Consecutive groups of a layer on their way through staging.
  struct Chunk {
    uint32_t first_group = 0;
    uint32_t groups = 0;
    uint32_t pending = 0;  // fragments under way
    bool failed = false;
  };
  struct Sizes;

  WeightPager(std::shared_ptr<const BundleFile> file, const WeightPagerOptions& options,
              const Sizes& sizes, AlignedBuffer arena);
  static Sizes SizesFor(const BundleShape& shape, const WeightPagerOptions& options,
                        uint64_t spare_bytes);
  static absl::StatusOr<Sizes> FittingSizes(const BundleShape& shape,
                                            const WeightPagerOptions& options);

  // --- weight_pager_open.cc ---
  void PinRows();
  // Gives rows of a layer slots that they keep, and plans their reads.
  void PinRows(uint32_t layer, uint32_t count);
  // The hottest first, as the file's calibration says.
  void SortByUse(uint32_t layer, std::vector<uint32_t>& rows) const;

  // --- weight_pager.cc: rows and their reads ---
  uint8_t NeededAtFirst() const { return layout_.staged() ? 1 : layout_.all_fragments(); }
  std::byte* SlotBytes(const Layer& layer, uint32_t slot) const {
    return layer.memory + size_t{slot} * layout_.row_bytes();
  }
  absl::Status CheckRange(uint32_t layer, absl::Span<const uint32_t> ids, uint32_t limit,
                          const char* what) const;
  void MarkPlaces(absl::Span<const uint32_t> places);
  void MarkExperts(absl::Span<const uint32_t> experts);
  // Calls function(row) for each mark, in ascending order, and clears them.
  template <typename Function>
  void TakeMarks(const Function& function);
  void RequireMarked(uint32_t layer);
  void PrefetchMarked(uint32_t layer);
  void FindRow(uint32_t layer, Entry& entry);
  void InsertRow(uint32_t layer, Entry& entry);
  // Adds entries for what else is in memory.
  void AddResident(uint32_t layer);
  // Rows whose last use is before this token leave the window, which ends with the token under way.
  uint64_t ExpiredBefore() const {
    const uint64_t window = options_.window_tokens;
    return window == 0 || token_ < window ? 0 : token_ - window + 1;
  }
  void DropExpired(Layer& layer);
  // Holds the slot and adds the reads of some of its fragments to `fragments_`.
  void PlanReads(uint32_t layer, uint32_t slot, uint8_t which);
  // Begins to read what is in `fragments_`.
  void ReadPlanned();
  void HandleArrivals(absl::Span<const WeightReader::Arrival> arrivals);
  void HandleSlotArrival(uint64_t tag, bool ok);

  // --- weight_pager_step.cc: the step under way ---
  absl::Status RunStep(uint32_t layer, absl::Span<const float> x,
                       absl::Span<const float> expert_weights, absl::Span<float> out);
  void StartStep(uint32_t layer, size_t tokens);
  absl::Span<const WeightReader::Arrival> WaitForReads();
  // What an entry does next, given what is there of it: is computed, waits, or is read (again).
  void AdvanceEntry(uint32_t index);
  void ActivateReady(uint32_t layer, const FfnInput& input);
  // Takes in what was computed of one row.
  void Settle(uint32_t layer, absl::Span<const FfnGroup> groups);
  void FailEntry(uint32_t index, absl::Status status);
  absl::Status CorruptStatus(uint32_t layer, const FfnGroup& group) const;
  // Of groups that could not be read.
  absl::Status UnreadStatus(uint32_t layer, uint32_t first_group) const;

  // --- weight_pager_stream.cc: what passes through staging ---
  void PlanChunks();
  std::byte* ChunkBytes(uint32_t index) const;
  void SubmitChunks();
  void PlanChunk(uint32_t index);
  // Also adds up the rows that have slots.
  absl::Status StreamChunks(uint32_t layer, const FfnInput& input, absl::Span<float> out);
  absl::Status ActivateChunk(uint32_t layer, uint32_t index, const FfnInput& input);
  void DrainChunks();

  // Constant after Open.
  MemoryReservation reservation_;
  const std::shared_ptr<const BundleFile> file_;
  const WeightPagerOptions options_;
  const WeightLayout layout_;
  const uint64_t memory_bytes_;
  const uint32_t capacity_;      // rows of a layer
  const uint32_t chunk_groups_;  // that one staging buffer holds
  const uint32_t chunk_buffers_;
  const AlignedBuffer arena_;  // the matrices of all layers, then staging
  std::byte* const staging_;
  const std::unique_ptr<ComputePool> own_pool_;
  ComputePool& pool_;

  std::vector<Layer> layers_;
  SparseFfn ffn_;
  uint64_t token_ = 0;
  uint64_t use_ = 0;

  // The step under way: of the layer that was required, if any.
  std::optional<uint32_t> required_;
  std::vector<uint64_t> marks_;  // [layer_rows] bits
  std::vector<uint32_t> prefetch_rows_;
  std::vector<Entry> entries_;       // by row
  std::vector<uint32_t> entry_of_;   // [capacity] of slots that entries have
  std::vector<FfnGroup> groups_;     // [entries, row_groups]
  std::vector<uint32_t> ready_;      // entries that can be computed
  std::vector<FfnGroup> active_;     // what is being computed
  std::vector<float> scales_;        // [entries, row_groups, group_neurons, tokens]
  std::vector<float> chunk_scales_;  // [chunk_groups, group_neurons, tokens]
  std::vector<Chunk> chunks_;
  uint32_t submitted_chunks_ = 0;
  uint32_t finished_chunks_ = 0;
  size_t unsettled_ = 0;  // entries with a slot that are not done
  bool stepping_ = false;
  absl::Status step_status_;
  std::vector<WeightReader::Fragment> fragments_;  // scratch

  WeightPagerStats stats_;
  uint64_t pinned_wanted_bytes_ = 0;
  double pinned_io_seconds_ = 0;
  double total_seconds_ = 0;

  std::unique_ptr<WeightReader> reader_;  // last: reads go into what is above
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_WEIGHT_PAGER_H_
