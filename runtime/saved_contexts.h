#ifndef TERRACE_RUNTIME_SAVED_CONTEXTS_H_
#define TERRACE_RUNTIME_SAVED_CONTEXTS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "runtime/checked_file.h"
#include "runtime/column_table.h"
#include "runtime/context.h"
#include "runtime/runtime.h"

namespace terrace {

// The contexts that outlive their process. Each is a manifest, `contexts/NAME.ctx` in the directory
// of the NVMe tier: what the window holds, which tokens they are, the keys of the columns and their
// summaries. The blocks are on NVMe, owned on behalf of the manifest. What its index knows is in a
// file beside it, `contexts/NAME.idx`, without which the index is built anew. Private to runtime/.
//
// Thread-safe; saving writes a file while the lock is held, so savers take turns.
class SavedContexts {
 public:
  explicit SavedContexts(RuntimeCore& core) : core_(core) {}

  // Before anything else: takes the manifests of earlier runs over, or, where the tiers started
  // empty, removes them. Owned blocks that belong to no manifest are cached from now on; none is
  // touched while a manifest cannot be read.
  absl::Status Recover() ABSL_LOCKS_EXCLUDED(mu_);

  absl::Status Save(absl::string_view name, Context& context)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(context.mu_) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::unique_ptr<Context>> Load(absl::string_view name) ABSL_LOCKS_EXCLUDED(mu_);
  // kNotFound.
  absl::Status Forget(absl::string_view name) ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<SavedContext> List() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Header;
  struct Saved {
    int64_t tokens = 0;
    std::vector<ColumnIndex> columns;   // referred to
    std::vector<ColumnIndex> postings;  // of its clusters, referred to
    uint64_t index_id = 0;              // of the file of its index
    bool index_fits = false;            // it was made by the policies of this runtime
    absl::Status status;
  };

  std::string Directory() const;
  std::string Path(absl::string_view name) const;
  std::string IndexPath(absl::string_view name) const;
  absl::Status CheckName(absl::string_view name) const;
  uint64_t LookupFingerprint() const;
  uint32_t SummaryLines() const;
  // saved_contexts_file.cc
  uint64_t WindowBytes(const Header& header) const;
  Saved ReadManifest(const std::string& path) const;
  absl::Status ReadHeader(CheckedFileReader& file, Header& header) const;
  absl::Status ReadColumns(CheckedFileReader& file, const Header& header, Saved& saved) const;
  absl::Status ReadPostings(CheckedFileReader& file, const Header& header, Saved& saved) const;
  absl::StatusOr<ColumnIndex> ReadColumn(CheckedFileReader& file, const Header& header,
                                         bool summaries_fit) const;
  absl::Status ReadContext(const std::string& path, Context& context) const;
  absl::Status ReadWindow(CheckedFileReader& file, const Header& header,
                          Context& context) const ABSL_NO_THREAD_SAFETY_ANALYSIS;
  absl::Status WriteManifest(const std::string& path, const Context& context,
                             const Saved& saved) const ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void WriteWindow(CheckedFileWriter& file,
                   const Context& context) const ABSL_NO_THREAD_SAFETY_ANALYSIS;

  RuntimeCore& core_;
  mutable absl::Mutex mu_;
  std::map<std::string, Saved, std::less<>> saved_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_SAVED_CONTEXTS_H_
