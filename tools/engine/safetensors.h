#ifndef TERRACE_TOOLS_ENGINE_SAFETENSORS_H_
#define TERRACE_TOOLS_ENGINE_SAFETENSORS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/kv_dtype.h"
#include "tools/engine/input_file.h"
#include "tools/engine/safetensors_header.h"

namespace terrace {

// A safetensors file: 8 bytes with the length of a JSON header, the header, then the bytes of the
// tensors. The header is checked in full when the file is opened; the tensors stay on disk until
// they are read. Thread-safe.
class SafetensorsFile {
 public:
  // Errors name the path, and the tensor where it is one: those of InputFile::Open,
  // kInvalidArgument for a header that lies (see ParseSafetensorsHeader), that is longer than the
  // file or than 100 MiB, as the format's own limit is, and for a file too short to have one.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  // In the order of their bytes.
  absl::Span<const TensorInfo> tensors() const { return tensors_; }
  // Null when the file has no such tensor. Valid while the file is, but not across moves.
  const TensorInfo* Find(absl::string_view name) const;

  // Reads one of this file's tensors as fp32, whatever it is stored as: [tensor.elements].
  // kInvalidArgument when its dtype cannot be loaded, kDataLoss when the file has become shorter.
  absl::Status Read(const TensorInfo& tensor, absl::Span<float> values) const;
  // Reads only [values.size()] elements, from `first` on. REQUIRES: the tensor has them.
  absl::Status ReadPart(const TensorInfo& tensor, uint64_t first, absl::Span<float> values) const;
  // Reads bytes of the tensor as they are stored. REQUIRES: the tensor has them.
  absl::Status ReadBytes(const TensorInfo& tensor, uint64_t offset, absl::Span<char> bytes) const;

 private:
  SafetensorsFile(InputFile file, uint64_t data_offset, std::vector<TensorInfo> tensors);

  InputFile file_;
  uint64_t data_offset_;
  std::vector<TensorInfo> tensors_;
  std::vector<size_t> by_name_;  // indices of tensors_, sorted by name
};

// A tensor on its way into a file. The values are borrowed.
struct TensorToWrite {
  std::string name;
  KvDtype dtype = KvDtype::kFloat32;  // they are rounded to it
  std::vector<uint64_t> shape;
  absl::Span<const float> values;  // as many as the shape says
};

// Writes a safetensors file with these tensors in this order, replacing what was at `path`. Errors
// name the path and have the errno's code, or are kInvalidArgument naming an element that is not
// finite as stored; no file is left then. REQUIRES: distinct names.
absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorToWrite> tensors);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_SAFETENSORS_H_
