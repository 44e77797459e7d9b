#include "runtime/saved_contexts.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "io/check.h"
#include "runtime/context_index.h"
#include "runtime/runtime_core.h"
#include "xxhash.h"

namespace terrace {
namespace {

constexpr absl::string_view kSuffix = ".ctx";
constexpr absl::string_view kIndexSuffix = ".idx";
constexpr size_t kMaxName = 100;

}  // namespace

std::string SavedContexts::Directory() const {
  return absl::StrCat(core_.options().tiers.nvme_dir, "/contexts");
}

std::string SavedContexts::Path(absl::string_view name) const {
  return absl::StrCat(Directory(), "/", name, kSuffix);
}

std::string SavedContexts::IndexPath(absl::string_view name) const {
  return absl::StrCat(Directory(), "/", name, kIndexSuffix);
}

absl::Status SavedContexts::CheckName(absl::string_view name) const {
  const bool fits = !name.empty() && name.size() <= kMaxName && name[0] != '.' &&
                    std::all_of(name.begin(), name.end(), [](char c) {
                      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
                             c == '_' || c == '-';
                    });
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat("name of a saved context: '", name, "' is not 1 to ", kMaxName,
                     " letters, digits, '_', '-' and '.', which does not come first"));
  }
  if (core_.options().tiers.nvme_bytes == 0) {
    return absl::FailedPreconditionError("saved contexts need an NVMe tier");
  }
  return absl::OkStatus();
}

uint64_t SavedContexts::LookupFingerprint() const {
  std::string text;
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    for (size_t head = 0; head < core_.shape().kv_heads; ++head) {
      const LookupPolicy& policy = core_.policy(layer, head);
      if (!policy.looks_up()) {
        absl::StrAppend(&text, policy.has_index() ? LookupKindName(policy.kind()) : "-", "/");
        continue;
      }
      const LookupOptions& options = policy.options();
      absl::StrAppend(&text, static_cast<int>(options.kind), ",", options.representatives, ",",
                      static_cast<int>(options.choice), ",", static_cast<int>(options.pooled), ",",
                      options.page_tokens, "/");
    }
  }
  return XXH3_64bits(text.data(), text.size());
}

// --- Recovery ---

absl::Status SavedContexts::Recover() {
  if (core_.options().tiers.nvme_bytes == 0) return absl::OkStatus();
  absl::MutexLock lock(&mu_);
  std::error_code error;
  bool all_known = true;
  absl::flat_hash_set<BlockId> claimed;
  std::filesystem::directory_iterator directory(Directory(), error);
  const std::filesystem::directory_iterator end;
  for (; !error && directory != end; directory.increment(error)) {
    std::string name = directory->path().filename().string();
    if (absl::EndsWith(name, kIndexSuffix) && !core_.options().tiers.reuse) {
      std::filesystem::remove(directory->path(), error);
    }
    if (!absl::EndsWith(name, kSuffix)) continue;
    name.resize(name.size() - kSuffix.size());
    if (!core_.options().tiers.reuse) {
      std::filesystem::remove(directory->path(), error);
      continue;
    }
    Saved saved = ReadManifest(directory->path().string());
    all_known &= saved.status.ok();
    std::vector<ColumnIndex> columns = saved.columns;
    columns.insert(columns.end(), saved.postings.begin(), saved.postings.end());
    for (const ColumnIndex column : columns) {
      for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
        for (size_t head = 0; head < core_.shape().kv_heads; ++head) {
          claimed.insert(core_.columns().block(column, layer, head));
        }
      }
    }
    saved_.emplace(std::move(name), std::move(saved));
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return absl::UnavailableError(absl::StrCat(Directory(), ": ", error.message()));
  }
  if (!core_.options().tiers.reuse || !all_known) return absl::OkStatus();
  std::vector<BlockId> orphans = core_.tiers().OwnedBlocks();
  orphans.erase(std::remove_if(orphans.begin(), orphans.end(),
                               [&](const BlockId& id) { return claimed.contains(id); }),
                orphans.end());
  core_.tiers().SetRetention(orphans, Retention::kCached);
  return absl::OkStatus();
}

absl::Status SavedContexts::Save(absl::string_view name, Context& context) {
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  // The manifest must not be there before what it refers to.
  if (absl::Status status = core_.tiers().Flush(); !status.ok()) return status;
  Saved saved;
  saved.tokens = context.TokensLocked();
  saved.columns = context.columns_;
  saved.index_id = core_.NewKey().low ^ core_.NewKey().high;
  saved.index_fits = true;
  absl::MutexLock lock(&mu_);
  if (::mkdir(Directory().c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::UnavailableError(absl::StrCat(Directory(), ": mkdir: ", strerror(errno)));
  }
  // Before the manifest that names it; the one before would not know it by its id.
  if (context.index_->is_used() &&
      !context.index_->Save(IndexPath(name), saved.index_id, saved.postings).ok()) {
    saved.postings.clear();  // the context is whole without
  }
  if (absl::Status status = WriteManifest(Path(name), context, saved); !status.ok()) {
    return status;
  }
  core_.columns().AddReference(saved.columns);
  core_.columns().AddReference(saved.postings);
  const auto [entry, is_new] = saved_.try_emplace(std::string(name));
  core_.columns().Release(entry->second.columns);
  core_.columns().Release(entry->second.postings);
  entry->second = std::move(saved);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Context>> SavedContexts::Load(absl::string_view name) {
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  auto context = std::unique_ptr<Context>(new Context(core_));
  absl::MutexLock context_lock(&context->mu_);
  if (absl::Status status = context->MakeReady(); !status.ok()) return status;
  {
    absl::MutexLock lock(&mu_);
    const auto found = saved_.find(name);
    if (found == saved_.end()) {
      return absl::NotFoundError(absl::StrCat("no saved context '", name, "' in ", Directory()));
    }
    const Saved& saved = found->second;
    if (!saved.status.ok()) return saved.status;
    context->columns_ = saved.columns;
    context->sealed_layers_.assign(saved.columns.size(), Context::kShared);
    core_.columns().AddReference(saved.columns);
    if (absl::Status status = ReadContext(Path(name), *context); !status.ok()) return status;
    if (saved.index_fits && context->index_->is_used()) {
      core_.columns().AddReference(saved.postings);
      // What cannot be read is made anew.
      context->index_->Load(IndexPath(name), saved.index_id, saved.postings).IgnoreError();
    }
  }
  absl::Status status = core_.CompleteSummaries(context->columns_);
  if (status.ok()) status = context->ReturnTo(context->TokensLocked());
  if (!status.ok()) return status;
  return context;
}

absl::Status SavedContexts::Forget(absl::string_view name) {
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  const auto found = saved_.find(name);
  if (found == saved_.end()) {
    return absl::NotFoundError(absl::StrCat("no saved context '", name, "' in ", Directory()));
  }
  if (::unlink(Path(name).c_str()) != 0 && errno != ENOENT) {
    return absl::UnavailableError(absl::StrCat(Path(name), ": unlink: ", strerror(errno)));
  }
  ::unlink(IndexPath(name).c_str());
  core_.columns().Release(found->second.columns);
  core_.columns().Release(found->second.postings);
  saved_.erase(found);
  return absl::OkStatus();
}

std::vector<SavedContext> SavedContexts::List() const {
  absl::MutexLock lock(&mu_);
  std::vector<SavedContext> list;
  for (const auto& [name, saved] : saved_) list.push_back({name, saved.tokens, saved.status});
  return list;
}

}  // namespace terrace
