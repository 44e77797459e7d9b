#ifndef TERRACE_RUNTIME_ATTEND_PASS_H_
#define TERRACE_RUNTIME_ATTEND_PASS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/cluster_table.h"
#include "index/key_index.h"
#include "runtime/attention_parallel.h"
#include "runtime/context.h"
#include "runtime/device_attention.h"
#include "runtime/device_tails.h"
#include "runtime/lookup_policy.h"
#include "runtime/runtime.h"
#include "runtime/runtime_core.h"
#include "tiers/lease.h"

namespace terrace {

// One call to Attend, and the memory that it needs, which later calls use again:
//
//   1. lookup: each KV head names the blocks, clusters or tokens that its queries want;
//   2. the first round of them is fetched, while
//   3. the heads attend to sinks and window;
//   4. round by round, they attend to the blocks that came while the next round is on its way, then
//      to tokens that indexes found, and estimate clusters that were left out;
//   5. the parts merge by log-sum-exp.
//
// With an HBM tier, its device attends to sinks, window and blocks. Then 3 starts before 1, and the
// CPU attends to what indexes found in DRAM while the device is at work.
//
// The result depends on the call, the state of the context and the options of the runtime, not on
// the number of threads or on what is in which tier. Belongs to one thread at a time; the compute
// pool works for it.
class AttendPass {
 public:
  // Errors of ParallelAttention::Create.
  static absl::StatusOr<std::unique_ptr<AttendPass>> Create(RuntimeCore& core);

  // Whether another call can work with it.
  bool usable() const { return device_ == nullptr || device_->usable(); }

  // All of it, for one context and for a batch, whose contexts it locks in the order of `contexts`.
  absl::Status RunOne(Context& context, size_t layer, const AttendInput& input,
                      const AttendOutput& output) ABSL_EXCLUSIVE_LOCKS_REQUIRED(context.mu_);
  static absl::Status RunBatch(RuntimeCore& core, size_t layer,
                               absl::Span<const BatchedAttend> batch,
                               absl::Span<Context* const> contexts) ABSL_NO_THREAD_SAFETY_ANALYSIS;

 private:
  // Contexts of a batch that needs no memory of its own.
  static constexpr size_t kUsualBatch = 64;
  // Of one fetch: enough to be worth dividing among threads.
  static constexpr size_t kMaxRoundBlocks = 512;
  static constexpr size_t kMaxRoundBytes = size_t{4} << 20;
  // Of what a device attends to, which is worth a launch.
  static constexpr size_t kMaxDeviceRoundBytes = size_t{32} << 20;
  // And a bus needs little ahead, while each launch takes as long as some megabytes do there.
  static constexpr size_t kDeviceRoundsAhead = 4;
  // Fetches on their way at once: 96 MiB of the usual blocks keep any disk busy, even one that
  // completes many requests at a time, while what came is verified and attended to.
  static constexpr size_t kRoundsAhead = 24;

  // Consecutive positions whose window begins at the same block.
  struct QueryGroup {
    size_t first = 0;  // of positions_
    size_t count = 0;
    int64_t window_begin = 0;
  };
  // What one KV head works on. Rows are positions x group, in this order.
  struct Head {
    const LookupPolicy* policy = nullptr;
    std::vector<float> local;     // queries for the window: [rows, head_dim]
    std::vector<float> far;       // for sinks and blocks, where they are others
    std::vector<float> out;       // merged so far: [rows, head_dim]
    std::vector<float> lse;       // [rows]
    std::vector<float> part_out;  // to be merged with it, the same shapes
    std::vector<float> part_lse;
    // Lookup.
    std::vector<float> sample;                // queries to look up with: [samples, head_dim]
    std::vector<size_t> sample_rows;          // the rows that they are, unless they are means
    std::vector<const std::byte*> summaries;  // [blocks]
    std::vector<float> scores;                // [samples, blocks]
    std::vector<float> levels;                // [samples]
    std::vector<float> ranks;                 // [blocks]
    std::vector<uint32_t> chosen;             // ascending: blocks or clusters
    // Of columns 1 to indexed - 1 it looks up tokens or clusters in an index.
    size_t indexed = 1;
    KeySearchResult found;         // of a graph
    std::vector<uint32_t> tokens;  // that it attends to, as PinnedColumns numbers them
    ClusterScores cluster_scores;
    KeyChoice key_choice;              // single keys of clusters
    std::vector<uint32_t> read;        // clusters that it attended to
    std::vector<AttentionPart> parts;  // of the job at hand
    LookupStats stats;                 // of this call
  };

  // attend_pass.cc
  // Checks a request and takes its queries. `context`, its lock and the memory of the request are
  // the caller's until Run has returned.
  absl::Status Begin(Context& context, size_t layer, const AttendInput& input,
                     const AttendOutput& output) ABSL_EXCLUSIVE_LOCKS_REQUIRED(context.mu_);
  // Carries out what Begin prepared, for several contexts at once; status_ says how each ended.
  static void Run(RuntimeCore& core,
                  absl::Span<AttendPass* const> passes) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  absl::Status Check(size_t layer, const AttendInput& input,
                     const AttendOutput& output) const ABSL_NO_THREAD_SAFETY_ANALYSIS;
  absl::Status TakeQueries(const AttendInput& input);
  void GroupQueries();
  bool separate_far() const { return core_.shape().key_state == KeyState::kBeforeRope; }
  absl::Span<const float> FarQueries(const Head& head) const {
    return separate_far() ? head.far : head.local;
  }
  void Finish() ABSL_NO_THREAD_SAFETY_ANALYSIS;

  // attend_local.cc
  // Starts the attention to sinks and window, where it runs in HBM, which AttendLocally then
  // waits for.
  absl::Status BeginLocally() ABSL_NO_THREAD_SAFETY_ANALYSIS;
  absl::Status AttendLocally() ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void ListLocalJobs() ABSL_NO_THREAD_SAFETY_ANALYSIS;
  // Those of device_, with a span on its track of the timeline.
  absl::Status StartOnDevice();
  absl::Status FinishOnDevice();
  void AddLocalJobs(size_t kv_head, const QueryGroup& group) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  static bool WantsMasses(const Head& head) {
    return head.policy->looks_up() && head.policy->summary()->wants_masses();
  }
  void AddMasses(size_t kv_head, size_t worker) ABSL_NO_THREAD_SAFETY_ANALYSIS;

  // attend_lookup.cc
  bool NeedsScores(const Head& head) const {
    return head.policy->looks_up() && blocks_ > head.policy->options().blocks;
  }
  void Lookup(size_t kv_head, size_t worker) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void TakeSample(Head& head) const;
  void FindLevels(size_t kv_head, size_t worker) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void ShareChoices();
  void EstimateMissedMass(Head& head) const;

  // attend_index.cc
  void UseIndexes(size_t layer) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void LookupInIndex(size_t kv_head) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void AttendTokens() ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void MergeTokens();
  void EstimateClusters() ABSL_NO_THREAD_SAFETY_ANALYSIS;

  // attend_blocks.cc
  void ListBlocks();
  absl::Status RequestRounds();
  // Gives up the fetches that are on their way, which are asked for again when they are needed.
  void ForgetRequests();
  void ListReads();
  // `batch` are the passes that this thread carries out together, this one among them.
  absl::StatusOr<Lease> AwaitRound(absl::Span<AttendPass* const> batch)
      ABSL_NO_THREAD_SAFETY_ANALYSIS;
  absl::Status AttendBlocks(absl::Span<AttendPass* const> batch);
  absl::Status AttendRound(const Lease& lease) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  // Leaves the clusters of the round at hand to estimation.
  void SkipLateRound();
  void CountBlock(const FarBlock& block, const LeasedBlock& leased) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void CountCluster(const FarBlock& block,
                    const LeasedBlock& leased) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  // Of the round at hand: clusters are waited for until the deadline.
  absl::Time RoundDeadline() const {
    return far_[requested_].is_cluster ? deadline_ : absl::InfiniteFuture();
  }
  BlockId IdOf(const FarBlock& block, size_t layer) const ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void PrefetchNextLayer() ABSL_NO_THREAD_SAFETY_ANALYSIS;

  AttendPass(RuntimeCore& core, std::unique_ptr<ParallelAttention> attention,
             std::unique_ptr<DeviceAttention> device);

  RuntimeCore& core_;
  // Of the request.
  Context* context_ = nullptr;
  absl::Status status_;
  size_t layer_ = 0;
  AttendOutput output_;
  std::vector<int64_t> positions_;
  std::vector<size_t> visible_;  // [rows], tokens from the begin of the window of the group
  std::vector<QueryGroup> groups_;
  std::vector<Head> heads_;   // [kv_heads]
  size_t rows_ = 0;           // of each head
  size_t blocks_ = 0;         // sealed ones, among which lookups choose
  std::vector<float> token_;  // queries of one position
  std::vector<float> cosines_;
  std::vector<float> sines_;
  std::unique_ptr<ParallelAttention> attention_;
  std::unique_ptr<DeviceAttention> device_;  // null where attention runs in DRAM
  DeviceTails::Scratch device_scratch_;
  TimelineTrack device_track_ = {};  // where there are a device and a timeline
  int64_t device_begin_ = 0;
  std::vector<AttentionJob> jobs_;

  absl::Duration patience_;  // with clusters
  absl::Time deadline_;      // for them, from when they are asked for
  // Blocks to attend to, by column and head, clusters last, and how far they are.
  std::vector<FarBlock> far_;
  size_t attended_ = 0;   // those of earlier rounds
  size_t requested_ = 0;  // and those that the tickets bring
  size_t round_blocks_ = 0;
  size_t rounds_ahead_ = 0;
  std::array<Ticket, kRoundsAhead> tickets_;  // a ring, the oldest at first_ticket_
  size_t first_ticket_ = 0;
  size_t ticket_count_ = 0;
  std::vector<BlockRead> reads_;
  std::vector<BlockId> hints_;

  // Of what indexes found one by one.
  struct TokenPiece {
    size_t kv_head;
    size_t begin;  // of Head::tokens
    size_t end;
  };
  std::vector<TokenPiece> token_pieces_;
  std::vector<std::vector<std::byte>> token_rows_;  // [threads], their keys and values
  std::vector<float> token_out_;                    // [pieces, rows, head_dim]
  std::vector<float> token_lse_;                    // [pieces, rows]

  double index_seconds_ = 0;
  double lookup_seconds_ = 0;
  double wait_seconds_ = 0;
  double attend_seconds_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ATTEND_PASS_H_
