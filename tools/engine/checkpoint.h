#ifndef TERRACE_TOOLS_ENGINE_CHECKPOINT_H_
#define TERRACE_TOOLS_ENGINE_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tools/engine/safetensors.h"

namespace terrace {

// The tensors of a model in a folder: one model.safetensors, or the shards that
// model.safetensors.index.json names, which goes first when both are there. Thread-safe.
class Checkpoint {
 public:
  // Opens every file. kInvalidArgument, naming index and tensor, for an index that names a file
  // outside of the folder or a tensor that the file does not have; otherwise the errors of
  // SafetensorsFile::Open.
  static absl::StatusOr<Checkpoint> Open(const std::string& directory);

  // Of all tensors, sorted.
  std::vector<std::string> TensorNames() const;

  const std::string& directory() const { return directory_; }
  // Null when there is no such tensor.
  const TensorInfo* Find(const std::string& name) const;
  // Reads consecutive elements of it as fp32, from `first` on. REQUIRES: the tensor has them.
  // Errors are those of SafetensorsFile::Read.
  absl::Status ReadPart(const std::string& name, uint64_t first, absl::Span<float> values) const;

  // A hash of names, shapes and dtypes of all tensors and of bytes of each: all of those up to
  // 1 MiB, else 64 stretches of 16 KiB evenly over it. So it tells models apart that differ
  // anywhere but in single weights of large matrices, and need not read all of a large one.
  absl::StatusOr<uint64_t> Fingerprint() const;

  // Reads a tensor as fp32: [product of `shape`]. kInvalidArgument when it is missing or has
  // another shape; otherwise the errors of SafetensorsFile::Read.
  absl::Status Read(const std::string& name, absl::Span<const uint64_t> shape,
                    std::vector<float>& values) const;

 private:
  Checkpoint() = default;

  absl::Status OpenShards(const std::string& directory, const std::string& index_path);
  absl::Status OpenOne(const std::string& path);

  struct Place {
    size_t file = 0;    // index of files_
    size_t tensor = 0;  // index of that file's tensors
  };

  std::string directory_;
  std::string source_;  // the file to name when a tensor is missing
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place> places_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_CHECKPOINT_H_
