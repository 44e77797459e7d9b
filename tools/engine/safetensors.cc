#include "tools/engine/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"
#include "io/check.h"
#include "io/unique_fd.h"
#include "nlohmann/json.hpp"

namespace terrace {
namespace {

constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;
constexpr size_t kLengthBytes = sizeof(uint64_t);
// Elements converted at a time, so that reading takes little memory besides its result.
constexpr size_t kChunkElements = size_t{256} << 10;

static_assert(std::endian::native == std::endian::little, "the length is copied as it lies");

absl::StatusOr<std::string> ReadHeader(const InputFile& file) {
  const auto bad = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", what...));
  };
  if (file.size_bytes() < kLengthBytes) {
    return bad("has ", file.size_bytes(), " bytes, too few for a safetensors file");
  }
  char length_bytes[kLengthBytes];
  if (absl::Status status = file.Read(0, length_bytes); !status.ok()) return status;
  uint64_t length = 0;
  std::memcpy(&length, length_bytes, sizeof(length));
  if (length > kMaxHeaderBytes) {
    return bad("claims a header of ", length, " bytes, more than the limit of ", kMaxHeaderBytes,
               "; not a safetensors file?");
  }
  if (length > file.size_bytes() - kLengthBytes) {
    return bad("claims a header of ", length, " bytes, but has only ", file.size_bytes(),
               " in all; truncated?");
  }
  std::string header(length, '\0');
  if (absl::Status status = file.Read(kLengthBytes, absl::MakeSpan(header)); !status.ok()) {
    return status;
  }
  return header;
}

std::string MakeHeader(absl::Span<const TensorToWrite> tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    uint64_t elements = 1;
    for (const uint64_t size : tensor.shape) elements *= size;
    TERRACE_CHECK_EQ(elements, tensor.values.size());
    TERRACE_CHECK(!header.contains(tensor.name));
    const uint64_t end = offset + elements * KvDtypeBytes(tensor.dtype);
    header[tensor.name] = {{"dtype", std::string(SafetensorsDtype(tensor.dtype))},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text =
      header.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  // Blanks at its end keep the data aligned to 8 bytes.
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
  return text;
}

absl::Status WriteAll(int fd, const std::string& path, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot write"));
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status WriteValues(int fd, const std::string& path, const TensorToWrite& tensor) {
  std::string bytes;
  for (size_t at = 0; at < tensor.values.size(); at += kChunkElements) {
    const absl::Span<const float> chunk = tensor.values.subspan(at, kChunkElements);
    bytes.resize(chunk.size() * KvDtypeBytes(tensor.dtype));
    const std::optional<size_t> bad =
        EncodeKv(chunk.data(), KvDtype::kFloat32, tensor.dtype, chunk.size(), bytes.data());
    if (bad.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", tensor.name, "\": element ", at + *bad,
                       " is not finite as ", KvDtypeName(tensor.dtype)));
    }
    if (absl::Status status = WriteAll(fd, path, bytes); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

SafetensorsFile::SafetensorsFile(InputFile file, uint64_t data_offset,
                                 std::vector<TensorInfo> tensors)
    : file_(std::move(file)),
      data_offset_(data_offset),
      tensors_(std::move(tensors)),
      by_name_(tensors_.size()) {
  std::iota(by_name_.begin(), by_name_.end(), size_t{0});
  std::sort(by_name_.begin(), by_name_.end(),
            [this](size_t a, size_t b) { return tensors_[a].name < tensors_[b].name; });
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  absl::StatusOr<InputFile> file = InputFile::Open(path);
  if (!file.ok()) return file.status();
  const absl::StatusOr<std::string> header = ReadHeader(*file);
  if (!header.ok()) return header.status();
  const uint64_t data_offset = kLengthBytes + header->size();
  absl::StatusOr<std::vector<TensorInfo>> tensors =
      ParseSafetensorsHeader(*header, file->size_bytes() - data_offset);
  if (!tensors.ok()) {
    return absl::Status(tensors.status().code(),
                        absl::StrCat(path, ": ", tensors.status().message()));
  }
  return SafetensorsFile(*std::move(file), data_offset, *std::move(tensors));
}

const TensorInfo* SafetensorsFile::Find(absl::string_view name) const {
  const auto found = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [this](size_t index, absl::string_view wanted) { return tensors_[index].name < wanted; });
  if (found == by_name_.end() || tensors_[*found].name != name) return nullptr;
  return &tensors_[*found];
}

absl::Status SafetensorsFile::Read(const TensorInfo& tensor, absl::Span<float> values) const {
  TERRACE_CHECK_EQ(values.size(), tensor.elements);
  return ReadPart(tensor, 0, values);
}

absl::Status SafetensorsFile::ReadPart(const TensorInfo& tensor, uint64_t first,
                                       absl::Span<float> values) const {
  TERRACE_CHECK(first <= tensor.elements && values.size() <= tensor.elements - first);
  const std::optional<KvDtype> dtype = LoadableDtype(tensor.dtype);
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(path(), ": tensor \"", tensor.name, "\": dtype ",
                                                   tensor.dtype, " is not F32, F16 or BF16"));
  }
  std::vector<char> bytes;
  uint64_t offset = first * KvDtypeBytes(*dtype);
  for (size_t at = 0; at < values.size(); at += kChunkElements) {
    const absl::Span<float> chunk = values.subspan(at, kChunkElements);
    bytes.resize(chunk.size() * KvDtypeBytes(*dtype));
    if (absl::Status status = ReadBytes(tensor, offset, absl::MakeSpan(bytes)); !status.ok()) {
      return status;
    }
    DecodeKv(bytes.data(), *dtype, chunk.size(), chunk.data());
    offset += bytes.size();
  }
  return absl::OkStatus();
}

absl::Status SafetensorsFile::ReadBytes(const TensorInfo& tensor, uint64_t offset,
                                        absl::Span<char> bytes) const {
  TERRACE_CHECK(offset <= tensor.bytes && bytes.size() <= tensor.bytes - offset);
  absl::Status status = file_.Read(data_offset_ + tensor.offset + offset, bytes);
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(status.message(), ", in tensor \"", tensor.name, "\""));
}

absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorToWrite> tensors) {
  const std::string header = MakeHeader(tensors);
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open to write"));
  const uint64_t length = header.size();
  char length_bytes[kLengthBytes];
  std::memcpy(length_bytes, &length, sizeof(length));
  absl::Status status = WriteAll(fd.get(), path, absl::string_view(length_bytes, kLengthBytes));
  if (status.ok()) status = WriteAll(fd.get(), path, header);
  for (const TensorToWrite& tensor : tensors) {
    if (status.ok()) status = WriteValues(fd.get(), path, tensor);
  }
  // What is no regular file, such as a device, is not ours to remove.
  struct stat found = {};
  if (!status.ok() && ::fstat(fd.get(), &found) == 0 && S_ISREG(found.st_mode)) {
    ::unlink(path.c_str());
  }
  return status;
}

}  // namespace terrace
