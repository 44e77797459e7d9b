#include "runtime/runtime_core.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "io/cuda_copy_engine.h"
#include "runtime/attend_pass.h"
#include "runtime/context.h"
#include "runtime/cuda_neighbours.h"
#include "runtime/prefix_cache.h"
#include "runtime/saved_contexts.h"
#include "xxhash.h"

namespace terrace {
namespace {

// Of the DRAM tier, what leases that are held for long leave to others.
constexpr size_t kUnpinnedShare = 16;
constexpr size_t kUnpinnedRows = 4;  // and at least so many blocks of each KV head

// Blocks that all tiers together can hold.
size_t BlocksOf(const TierManagerOptions& tiers) {
  return static_cast<size_t>((tiers.hbm_bytes + tiers.dram_bytes + tiers.nvme_bytes) /
                             tiers.block_bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RuntimeCore>> RuntimeCore::Open(RuntimeOptions options,
                                                               TierManager::Parts parts) {
  if (options.tiers.timeline == nullptr) options.tiers.timeline = options.timeline;
  options.tiers.block_bytes = options.BlockBytes();
  options.tiers.model_fingerprint = options.shape.Fingerprint(options.tokens_per_block);
  // Without rotated keys the angles are never used, but a head_dim that rope cannot split is fine.
  absl::StatusOr<Rope> rope = Rope::Create(options.shape.head_dim, options.shape.rope);
  if (!rope.ok()) return rope.status();
  auto core = std::unique_ptr<RuntimeCore>(new RuntimeCore(std::move(options), *std::move(rope)));
  if (absl::Status status = core->MakePolicies(); !status.ok()) return status;
  const uint64_t fixed_bytes = core->options_.tiers.dram_bytes + core->options_.IndexBytes();
  if (absl::Status status = core->Reserve(fixed_bytes); !status.ok()) return status;
  if (absl::Status status = core->OpenTiers(std::move(parts)); !status.ok()) return status;
  core->MakeNeighbours();
  if (absl::Status status = core->MakeMemory(); !status.ok()) return status;
  if (absl::Status status = core->Reserve(core->window_bytes()); !status.ok()) return status;
  if (core->device_tails_ != nullptr) {
    // What a device cannot do, or has no memory for, shows now.
    auto pass = core->TakePass();
    if (!pass.ok()) return pass.status();
    core->GivePass(*std::move(pass));
  }
  core->chain_root_ = ChainRoot(core->options_.tiers.model_fingerprint, /*space=*/0);
  core->saved_ = std::make_unique<SavedContexts>(*core);
  if (absl::Status status = core->saved_->Recover(); !status.ok()) return status;
  return core;
}

RuntimeCore::RuntimeCore(RuntimeOptions options, Rope rope)
    : options_(std::move(options)),
      rope_(std::move(rope)),
      tail_layout_(TailLayoutOf(options_)),
      compute_(options_.threads) {
  std::random_device random;
  const auto word = [&] { return (uint64_t{random()} << 32) | random(); };
  absl::MutexLock lock(&mu_);
  key_seed_ = {word(), word()};
}

RuntimeCore::~RuntimeCore() {
  absl::MutexLock lock(&mu_);
  TERRACE_CHECK(contexts_.empty());
}

absl::Status RuntimeCore::Reserve(uint64_t bytes) {
  if (options_.memory == nullptr) return absl::OkStatus();
  absl::StatusOr<MemoryReservation> reserved = options_.memory->Reserve("kv", bytes);
  if (!reserved.ok()) return reserved.status();
  reservations_.push_back(*std::move(reserved));
  return absl::OkStatus();
}

absl::Status RuntimeCore::MakePolicies() {
  for (uint32_t layer = 0; layer < options_.shape.layers; ++layer) {
    for (uint32_t head = 0; head < options_.shape.kv_heads; ++head) {
      auto policy = LookupPolicy::Create(options_.LookupOf(layer, head), options_.shape,
                                         options_.tokens_per_block);
      if (!policy.ok()) return policy.status();
      policies_.push_back(*std::move(policy));
    }
  }
  return absl::OkStatus();
}

// Of the HBM, windows take their part first.
absl::Status RuntimeCore::OpenTiers(TierManager::Parts parts) {
  TierManagerOptions options = options_.tiers;
  if (parts.copy_engine == nullptr && options.hbm_bytes > 0 &&
      options.hbm_device == HbmDevice::kCuda) {
    auto engine = MakeCudaCopyEngine(
        {.device = options.cuda_device, .pool_bytes = static_cast<size_t>(options.hbm_bytes)});
    if (!engine.ok()) return engine.status();
    parts.copy_engine = *std::move(engine);
  }
  options.hbm_bytes -= options_.HbmWindowBytes();
  auto tiers = TierManager::Open(options, std::move(parts));
  if (!tiers.ok()) return tiers.status();
  tiers_ = *std::move(tiers);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceAttention>> RuntimeCore::MakeDeviceAttention() const {
  const DeviceAttention::Options options = {.head_dim = options_.shape.head_dim,
                                            .usual_rows = options_.shape.group(),
                                            .threads = compute_.threads()};
  return tiers_->copy_engine().is_host() ? MakeHostDeviceAttention(options)
                                         : MakeCudaAttention(options, options_.tiers.cuda_device);
}

void RuntimeCore::MakeNeighbours() {
  const TierManagerOptions& tiers = options_.tiers;
  const bool has_graphs = std::any_of(policies_.begin(), policies_.end(), [](const auto& policy) {
    return policy->kind() == LookupKind::kGraph;
  });
  if (!has_graphs || tiers.hbm_bytes == 0 || tiers.hbm_device != HbmDevice::kCuda) return;
  // The CPU builds graphs as well, so a device without cuBLAS or memory for it is no error.
  auto neighbours = MakeCudaNeighbours(tiers.cuda_device);
  if (neighbours.ok()) neighbours_ = *std::move(neighbours);
}

absl::Status RuntimeCore::MakeMemory() {
  constexpr size_t kCacheLine = 64;
  std::vector<size_t> summary_bytes;
  for (const std::unique_ptr<LookupPolicy>& policy : policies_) {
    const size_t bytes = policy->looks_up() ? policy->summary()->bytes() : 0;
    summary_bytes.push_back((bytes + kCacheLine - 1) / kCacheLine * kCacheLine);
  }
  const size_t heads = size_t{options_.shape.layers} * options_.shape.kv_heads;
  // Columns of clusters have a part of their own, so that they leave tokens theirs.
  const bool has_index = std::any_of(policies_.begin(), policies_.end(),
                                     [](const auto& policy) { return policy->has_index(); });
  const size_t window_blocks =
      static_cast<size_t>(options_.HbmWindowBytes()) / options_.BlockBytes();
  const size_t whole = (BlocksOf(options_.tiers) - window_blocks) / heads + 1;
  const size_t postings = has_index ? whole : 0;
  auto columns = ColumnTable::Create({.columns = whole + postings,
                                      .postings = postings,
                                      .layers = options_.shape.layers,
                                      .kv_heads = options_.shape.kv_heads,
                                      .tokens = options_.tokens_per_block,
                                      .summary_bytes = std::move(summary_bytes)},
                                     *tiers_);
  if (!columns.ok()) return columns.status();
  columns_ = *std::move(columns);

  const size_t tail_bytes = TailBytes(options_);
  auto tails = AlignedBuffer::Create(options_.active_contexts * tail_bytes);
  if (!tails.ok()) return tails.status();
  tails_ = *std::move(tails);
  if (options_.tiers.hbm_bytes > 0) {
    auto mirror = DeviceTails::Create(tiers_->copy_engine(), tails_.span());
    if (!mirror.ok()) return mirror.status();
    device_tails_ = *std::move(mirror);
  }
  const size_t rows = options_.max_append_tokens * options_.shape.group();
  for (size_t i = 0; i < compute_.threads(); ++i) {
    auto accumulator = AttentionAccumulator::Create(rows, options_.shape.head_dim);
    if (!accumulator.ok()) return accumulator.status();
    accumulators_.push_back(*std::move(accumulator));
  }
  absl::MutexLock lock(&mu_);
  for (size_t i = options_.active_contexts; i > 0; --i) {
    free_tails_.push_back(tails_.data() + (i - 1) * tail_bytes);
  }
  return absl::OkStatus();
}

int64_t RuntimeCore::WindowBegin(int64_t position) const {
  const auto block = static_cast<int64_t>(options_.tokens_per_block);
  const int64_t oldest = position + 1 - static_cast<int64_t>(options_.window_tokens);
  return oldest <= 0 ? 0 : oldest / block * block;
}

void RuntimeCore::Register(Context& context) {
  absl::MutexLock lock(&mu_);
  contexts_.insert(&context);
}

void RuntimeCore::Unregister(Context& context) {
  absl::MutexLock lock(&mu_);
  contexts_.erase(&context);
}

absl::StatusOr<std::byte*> RuntimeCore::TakeTail() {
  while (true) {
    Context* idle = nullptr;
    {
      absl::MutexLock lock(&mu_);
      if (!free_tails_.empty()) {
        std::byte* const memory = free_tails_.back();
        free_tails_.pop_back();
        return memory;
      }
      idle = Context::LockIdlest(contexts_);
    }
    if (idle == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("active_contexts: all ", options_.active_contexts,
                       " windows in memory belong to contexts that are at work"));
    }
    if (absl::Status status = Context::ParkAndUnlock(*idle); !status.ok()) return status;
  }
}

void RuntimeCore::GiveTail(std::byte* memory) {
  absl::MutexLock lock(&mu_);
  free_tails_.push_back(memory);
}

uint64_t RuntimeCore::NextUse() {
  absl::MutexLock lock(&mu_);
  return ++uses_;
}

ColumnKey RuntimeCore::NewKey() {
  absl::MutexLock lock(&mu_);
  const uint64_t text[] = {key_seed_.high, key_seed_.low++};
  const XXH128_hash_t hash = XXH3_128bits(text, sizeof(text));
  return {hash.high64, hash.low64};
}

absl::StatusOr<std::unique_ptr<AttendPass>> RuntimeCore::TakePass() {
  {
    absl::MutexLock lock(&mu_);
    if (!passes_.empty()) {
      std::unique_ptr<AttendPass> pass = std::move(passes_.back());
      passes_.pop_back();
      return pass;
    }
  }
  return AttendPass::Create(*this);
}

void RuntimeCore::GivePass(std::unique_ptr<AttendPass> pass) {
  if (!pass->usable()) return;
  absl::MutexLock lock(&mu_);
  passes_.push_back(std::move(pass));
}

absl::Status RuntimeCore::TakeIndexMemory(uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  const uint64_t limit = options_.IndexBytes();
  if (bytes > limit || index_bytes_ > limit - bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "index_bytes: ", bytes, " bytes more than the ", index_bytes_, " in use exceed ", limit));
  }
  index_bytes_ += bytes;
  return absl::OkStatus();
}

void RuntimeCore::GiveIndexMemory(uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  index_bytes_ -= bytes;
}

uint64_t RuntimeCore::index_bytes() const {
  absl::MutexLock lock(&mu_);
  return index_bytes_;
}

std::vector<size_t> RuntimeCore::HeadsOf(size_t layer, LookupKind kind) const {
  std::vector<size_t> heads;
  for (size_t head = 0; head < options_.shape.kv_heads; ++head) {
    if (policy(layer, head).kind() == kind) heads.push_back(head);
  }
  return heads;
}

absl::Status RuntimeCore::TakePins(size_t blocks) {
  const size_t all = tiers_->max_fetch_blocks(Tier::kDram);
  const size_t left = std::max(all / kUnpinnedShare, kUnpinnedRows * options_.shape.kv_heads);
  const size_t limit = all - std::min(all, left);
  absl::MutexLock lock(&mu_);
  if (blocks > limit || pins_ > limit - blocks) {
    return absl::ResourceExhaustedError(absl::StrCat("tiers.dram_bytes: of ", all, " blocks, ",
                                                     pins_, " are kept for indexes, and ", blocks,
                                                     " more exceed ", limit));
  }
  pins_ += blocks;
  return absl::OkStatus();
}

size_t RuntimeCore::UnpinnedBlocks() const {
  absl::MutexLock lock(&mu_);
  return tiers_->max_fetch_blocks(Tier::kDram) - pins_;
}

void RuntimeCore::GivePins(size_t blocks) {
  absl::MutexLock lock(&mu_);
  pins_ -= blocks;
}

absl::Status RuntimeCore::CompleteSummaries(absl::Span<const ColumnIndex> columns) {
  for (const ColumnIndex column : columns) {
    if (!columns_->BeginSummaries(column)) continue;
    const absl::Status status = Summarise(column);
    columns_->EndSummaries(column, status.ok());
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RuntimeCore::NotServed(const BlockId& id, absl::string_view text) {
  if (!tiers_->Find(id).has_value()) return absl::DataLossError(text);
  return absl::UnavailableError(absl::StrCat(
      text, " for now: it could not be copied from or to HBM on ", tiers_->copy_engine().name()));
}

absl::Status RuntimeCore::Summarise(ColumnIndex column) {
  std::vector<BlockRead> reads;
  std::vector<size_t> heads;  // of the reads
  for (size_t layer = 0; layer < options_.shape.layers; ++layer) {
    reads.clear();
    heads.clear();
    for (size_t head = 0; head < options_.shape.kv_heads; ++head) {
      if (!policy(layer, head).looks_up()) continue;
      reads.push_back({.id = columns_->block(column, layer, head)});
      heads.push_back(head);
    }
    if (reads.empty()) continue;
    const auto lease =
        tiers_->Fetch(reads, {.target = Tier::kDram, .lease_patience = kLeasePatience});
    if (!lease.ok()) return lease.status();
    for (size_t i = 0; i < heads.size(); ++i) {
      if ((*lease)[i].outcome != BlockOutcome::kServed) {
        return NotServed(reads[i].id, absl::StrCat("a block of layer ", layer, ", KV head ",
                                                   heads[i], " that a lookup has to know is lost"));
      }
      const BlockSummary& summary = *policy(layer, heads[i]).summary();
      summary.Summarise((*lease)[i].data, options_.shape.dtype, {},
                        columns_->summary(column, layer, heads[i]).first(summary.bytes()));
    }
  }
  return absl::OkStatus();
}

}  // namespace terrace
