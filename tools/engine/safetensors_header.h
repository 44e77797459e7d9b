#ifndef TERRACE_TOOLS_ENGINE_SAFETENSORS_HEADER_H_
#define TERRACE_TOOLS_ENGINE_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/kv_dtype.h"

namespace terrace {

// One tensor of a safetensors file.
struct TensorInfo {
  std::string name;
  std::string dtype;            // as the file has it: "F32", "F16", "BF16", "I64", ...
  std::vector<uint64_t> shape;  // outermost first; empty for a scalar
  uint64_t elements = 0;        // the product of the shape
  uint64_t offset = 0;          // bytes, from the first byte after the header
  uint64_t bytes = 0;
};

// The element type behind the file's name of it; nothing for those that cannot be loaded.
std::optional<KvDtype> LoadableDtype(absl::string_view dtype);
// The file's name of an element type.
absl::string_view SafetensorsDtype(KvDtype dtype);

// "[512, 256]".
std::string ShapeText(absl::Span<const uint64_t> shape);

// Reads the JSON header of a file that has `data_bytes` bytes after it. The tensors come in the
// order of their bytes, and together they are exactly all of the data: the format allows no holes.
// kInvalidArgument naming the tensor, or the byte of the header, and what is wrong: no JSON, an
// unknown or repeated field, two tensors of one name, numbers that are no unsigned integers,
// offsets outside of the data or in the wrong order, a size that is not that of the shape (checked
// for every dtype the format has; the size of an unknown dtype is taken as it is), overlaps and
// holes.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(absl::string_view header,
                                                               uint64_t data_bytes);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_SAFETENSORS_HEADER_H_
