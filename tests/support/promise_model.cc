#include "tests/support/promise_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

const char* Name(Retention retention) {
  return retention == Retention::kOwned ? "owned" : "cached";
}

}  // namespace

uint64_t PromiseModel::version(uint64_t number) const {
  absl::MutexLock lock(&mu_);
  return blocks_[number].version;
}

uint64_t PromiseModel::newest_version(uint64_t number) const {
  absl::MutexLock lock(&mu_);
  return blocks_[number].newest;
}

bool PromiseModel::must_be_here(uint64_t number) const {
  absl::MutexLock lock(&mu_);
  return blocks_[number].present && blocks_[number].retention == Retention::kOwned;
}

void PromiseModel::Begin(uint64_t number, Change change, bool power) {
  absl::MutexLock lock(&mu_);
  Block& block = blocks_[number];
  TERRACE_CHECK(!block.busy);
  block.busy = true;
  ++block.changes;
  if (!power || !block.promise) return;
  // Whether the change reaches the disk before a cut is open.
  Promise& promise = *block.promise;
  const bool owned = promise.retention == Retention::kOwned;
  switch (change) {
    case Change::kPut:
      break;
    case Change::kPutOwned:
    case Change::kOwn:
      if (!owned) promise.retention_kept = false;
      break;
    case Change::kDisown:
      if (owned) promise.kept = promise.retention_kept = false;
      break;
    case Change::kDrop:
      block.promise.reset();
      break;
  }
}

void PromiseModel::End(uint64_t number, Change change, bool present) {
  absl::MutexLock lock(&mu_);
  Block& block = blocks_[number];
  TERRACE_CHECK(block.busy);
  block.busy = false;
  const bool was_owned = block.present && block.retention == Retention::kOwned;
  block.present = present;
  switch (change) {
    case Change::kPut:
      block.retention = was_owned ? Retention::kOwned : Retention::kCached;
      break;
    case Change::kPutOwned:
    case Change::kOwn:
      block.retention = Retention::kOwned;
      break;
    case Change::kDisown:
      block.retention = Retention::kCached;
      break;
    case Change::kDrop:
      block.retention = Retention::kCached;
      block.version = ++block.newest;
      block.floor = block.version;
      break;
  }
}

void PromiseModel::Lost(uint64_t number) {
  absl::MutexLock lock(&mu_);
  blocks_[number].present = false;
}

PromiseModel::FlushStart PromiseModel::BeginFlush() const {
  FlushStart start;
  absl::MutexLock lock(&mu_);
  for (const Block& block : blocks_) {
    start.blocks.push_back({.settled = block.present && !block.busy,
                            .changes = block.changes,
                            .version = block.version,
                            .floor = block.floor,
                            .retention = block.retention});
  }
  return start;
}

void PromiseModel::EndFlush(const FlushStart& start, uint64_t evicted_segments,
                            const std::function<bool(uint64_t number)>& on_nvme) {
  absl::MutexLock lock(&mu_);
  for (uint64_t number = 0; number < blocks_.size(); ++number) {
    Block& block = blocks_[number];
    const FlushStart::Block& then = start.blocks[number];
    block.oldest = std::max(block.oldest, then.floor);
    if (!then.settled || then.changes != block.changes) continue;
    const bool owned = then.retention == Retention::kOwned;
    block.promise = {.version = then.version,
                     .retention = then.retention,
                     .kept = owned || on_nvme(number),
                     .retention_kept = true,
                     .evicted_segments = evicted_segments};
  }
}

std::string PromiseModel::Check(uint64_t number, std::optional<uint64_t> served,
                                Retention retention, uint64_t evicted_segments) {
  absl::MutexLock lock(&mu_);
  const Block& block = blocks_[number];
  const std::string what = absl::StrCat(
      "block ", number, ": ",
      served ? absl::StrCat("served with version ", *served, ", ", Name(retention)) : "missing");
  if (block.oldest > 0) ++counts_.gone;
  if (served && (*served < block.oldest || *served > block.newest)) {
    return absl::StrCat(what, "; versions before ", block.oldest, " were dropped for good");
  }
  if (!block.promise) return "";
  const Promise& promise = *block.promise;
  const bool certain =
      promise.retention == Retention::kOwned || promise.evicted_segments == evicted_segments;
  if (promise.kept && certain) {
    ++counts_.kept;
    if (served != promise.version) {
      return absl::StrCat(what, "; version ", promise.version, ", ", Name(promise.retention),
                          ", was flushed");
    }
  }
  if (promise.retention_kept && served == promise.version) {
    ++counts_.retention;
    if (retention != promise.retention) {
      return absl::StrCat(what, "; it was flushed as ", Name(promise.retention));
    }
  }
  return "";
}

void PromiseModel::Recovered(uint64_t number, std::optional<uint64_t> served, Retention retention) {
  absl::MutexLock lock(&mu_);
  Block& block = blocks_[number];
  block.busy = false;
  block.present = served.has_value();
  block.retention = served ? retention : Retention::kCached;
  block.version = served ? *served : ++block.newest;
  block.floor = block.oldest;  // drops that no flush followed are forgotten
  block.promise.reset();
  if (served) block.promise = {.version = *served, .retention = retention};
}

void PromiseModel::BreakPromises() {
  absl::MutexLock lock(&mu_);
  for (Block& block : blocks_) block.promise.reset();
}

void PromiseModel::StartEmpty() {
  absl::MutexLock lock(&mu_);
  for (Block& block : blocks_) {
    block.version = ++block.newest;
    block.oldest = block.floor = block.version;
    block.busy = block.present = false;
    block.retention = Retention::kCached;
    block.promise.reset();
  }
}

PromiseModel::Counts PromiseModel::counts() const {
  absl::MutexLock lock(&mu_);
  return counts_;
}

}  // namespace terrace
