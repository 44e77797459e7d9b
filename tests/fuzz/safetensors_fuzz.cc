// Feeds arbitrary bytes to the reader of safetensors files, once as a header and once as a file.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tools/engine/safetensors.h"

namespace terrace {
namespace {

void CheckThat(bool condition, const char* promise) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

void CheckTensors(absl::Span<const TensorInfo> tensors, uint64_t data_bytes) {
  uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    CheckThat(tensor.offset == end, "tensors follow each other without holes and overlaps");
    end += tensor.bytes;
    const std::optional<KvDtype> dtype = LoadableDtype(tensor.dtype);
    CheckThat(!dtype.has_value() || tensor.bytes == tensor.elements * KvDtypeBytes(*dtype),
              "tensors have the bytes of their elements");
  }
  CheckThat(end == data_bytes, "tensors are all of the data");
}

void FuzzHeader(absl::string_view header) {
  // As much data as the corpus has behind its headers.
  constexpr uint64_t kDataBytes = 32;
  const auto tensors = ParseSafetensorsHeader(header, kDataBytes);
  if (tensors.ok()) {
    CheckTensors(*tensors, kDataBytes);
    return;
  }
  CheckThat(tensors.status().code() == absl::StatusCode::kInvalidArgument,
            "bad headers are bad arguments");
  CheckThat(!tensors.status().message().empty(), "errors say what is wrong");
}

void FuzzFile(const std::string& path, uint64_t size_bytes) {
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) {
    CheckThat(absl::StrContains(file.status().message(), path), "errors name the file");
    return;
  }
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : file->tensors()) {
    CheckThat(file->Find(tensor.name) == &tensor, "tensors are found by their names");
    bytes += tensor.bytes;
    if (!LoadableDtype(tensor.dtype).has_value()) continue;
    std::vector<float> values(tensor.elements);
    CheckThat(file->Read(tensor, absl::MakeSpan(values)).ok(), "listed tensors can be read");
  }
  CheckThat(bytes < size_bytes, "tensors are inside of the file");
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  // The corpus are files: their headers begin after 8 bytes.
  terrace::FuzzHeader(input.substr(std::min<size_t>(size, 8)));
  // One file for the whole run; it never touches a disk.
  static const int fd = ::memfd_create("safetensors", MFD_CLOEXEC);
  terrace::CheckThat(fd >= 0, "memory files can be made");
  terrace::CheckThat(::ftruncate(fd, 0) == 0, "memory files can be emptied");
  terrace::CheckThat(::pwrite(fd, data, size, 0) == static_cast<ssize_t>(size),
                     "memory files can be written");
  terrace::FuzzFile(absl::StrCat("/proc/self/fd/", fd), size);
  return 0;
}
