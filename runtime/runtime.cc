#include "runtime/runtime.h"

#include <algorithm>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "io/check.h"
#include "runtime/attend_pass.h"
#include "runtime/prefix_cache.h"
#include "runtime/runtime_core.h"
#include "runtime/saved_contexts.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<Runtime>> Runtime::Open(const RuntimeOptions& options,
                                                       TierManager::Parts parts) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  auto core = RuntimeCore::Open(options, std::move(parts));
  if (!core.ok()) return core.status();
  return std::unique_ptr<Runtime>(new Runtime(*std::move(core)));
}

Runtime::Runtime(std::unique_ptr<RuntimeCore> core) : core_(std::move(core)) {}

Runtime::~Runtime() = default;

absl::StatusOr<std::unique_ptr<Context>> Runtime::NewContext() {
  auto context = std::unique_ptr<Context>(new Context(*core_));
  absl::MutexLock lock(&context->mu_);
  if (absl::Status status = context->MakeReady(); !status.ok()) return status;
  return context;
}

absl::StatusOr<std::unique_ptr<Context>> Runtime::NewContext(absl::Span<const int32_t> tokens) {
  auto context = NewContext();
  if (!context.ok() || tokens.size() < 2) return context;
  PrefixCache cache(core_->columns());
  PrefixCache::Hit hit = cache.Longest(core_->chain_root(), tokens.first(tokens.size() - 1));
  if (hit.tokens == 0) return context;
  absl::Status status = core_->CompleteSummaries(hit.columns);
  if (status.ok()) {
    status = (*context)->StartWith(std::move(hit.columns), tokens.first(hit.tokens));
  } else {
    core_->columns().Release(hit.columns);
  }
  if (absl::IsDataLoss(status)) return NewContext();  // a prefix that is lost is no hit
  if (!status.ok()) return status;
  return context;
}

absl::StatusOr<std::unique_ptr<Context>> Runtime::Load(absl::string_view name) {
  return core_->saved().Load(name);
}

std::vector<SavedContext> Runtime::Saved() const { return core_->saved().List(); }

absl::Status Runtime::Forget(absl::string_view name) { return core_->saved().Forget(name); }

absl::Status Runtime::Attend(size_t layer, absl::Span<const BatchedAttend> batch) {
  // Locked in one order, so that two batches cannot wait for each other.
  absl::InlinedVector<Context*, 64> contexts;
  for (const BatchedAttend& one : batch) {
    if (one.context == nullptr) return absl::InvalidArgumentError("a batch has a null context");
    contexts.push_back(one.context);
  }
  std::sort(contexts.begin(), contexts.end());
  if (std::adjacent_find(contexts.begin(), contexts.end()) != contexts.end()) {
    return absl::InvalidArgumentError("a batch has one context twice");
  }
  return AttendPass::RunBatch(*core_, layer, batch, contexts);
}

const RuntimeOptions& Runtime::options() const { return core_->options(); }

TierManager& Runtime::tiers() { return core_->tiers(); }

RuntimeStats Runtime::Stats() const {
  const ColumnTable& columns = core_->columns();
  const NeighbourSearch* const neighbours = core_->neighbours();
  return {.tiers = core_->tiers().Stats(),
          .window_bytes = core_->window_bytes(),
          .summary_bytes = columns.memory_bytes(),
          .index_bytes = core_->index_bytes(),
          .neighbours = neighbours != nullptr ? neighbours->counts() : NeighbourSearch::Counts(),
          .columns = columns.used(),
          .column_capacity = columns.options().columns};
}

}  // namespace terrace
