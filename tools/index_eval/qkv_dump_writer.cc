#include "tools/index_eval/qkv_dump_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"
#include "nlohmann/json.hpp"
#include "tools/engine/safetensors_header.h"

namespace terrace {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 24;  // fp32 counts so far
constexpr size_t kLengthBytes = sizeof(uint64_t);
constexpr size_t kMoveBytes = size_t{1} << 20;
constexpr char kPromptTokens[] = "prompt_tokens";

std::string UnfinishedPath(const std::string& path) { return absl::StrCat(path, ".unfinished"); }

}  // namespace

absl::StatusOr<std::unique_ptr<QkvDumpWriter>> QkvDumpWriter::Create(const std::string& path,
                                                                     const ModelConfig& config,
                                                                     const Options& options) {
  if (options.prompt_tokens < 0 || options.max_tokens < 1 || options.max_tokens >= kMaxTokens ||
      options.prompt_tokens > options.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", options.prompt_tokens, " tokens of a prompt and ", options.max_tokens,
        " in all cannot be dumped, the limit is ", kMaxTokens - 1));
  }
  const std::string unfinished = UnfinishedPath(path);
  UniqueFd fd(::open(unfinished.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat(unfinished, ": cannot open"));
  return std::unique_ptr<QkvDumpWriter>(new QkvDumpWriter(path, std::move(fd), config, options));
}

QkvDumpWriter::QkvDumpWriter(std::string path, UniqueFd fd, const ModelConfig& config,
                             const Options& options)
    : path_(std::move(path)),
      fd_(std::move(fd)),
      config_(config),
      options_(options),
      tokens_(config.layers) {
  LayOut();
}

QkvDumpWriter::~QkvDumpWriter() {
  if (!finished_) ::unlink(UnfinishedPath(path_).c_str());
}

void QkvDumpWriter::LayOut() {
  for (size_t layer = 0; layer < config_.layers; ++layer) {
    const std::string prefix = absl::StrCat("layers.", layer);
    for (size_t head = 0; head < config_.query_heads; ++head) {
      tensors_.push_back(
          {absl::StrCat(prefix, ".query_heads.", head, ".query"), KvDtype::kFloat32});
    }
    for (const char* const part : {"key", "value"}) {
      for (size_t head = 0; head < config_.kv_heads; ++head) {
        tensors_.push_back(
            {absl::StrCat(prefix, ".kv_heads.", head, ".", part), KvDtype::kFloat16});
      }
    }
  }
  // The largest numbers are the longest, so the header of fewer tokens fits too.
  data_offset_ = Header(options_.max_tokens).size();
  uint64_t offset = data_offset_ + sizeof(float);
  for (Tensor& tensor : tensors_) {
    tensor.offset = offset;
    offset += RowBytes(tensor) * static_cast<uint64_t>(options_.max_tokens);
  }
}

// Its length, and the JSON with blanks at the end up to the data.
std::string QkvDumpWriter::Header(int64_t tokens) const {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  uint64_t offset = 0;
  const auto add = [&](const std::string& name, KvDtype dtype, std::vector<uint64_t> shape) {
    uint64_t bytes = KvDtypeBytes(dtype);
    for (const uint64_t size : shape) bytes *= size;
    header[name] = {{"dtype", std::string(SafetensorsDtype(dtype))},
                    {"shape", std::move(shape)},
                    {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  };
  add(kPromptTokens, KvDtype::kFloat32, {1});
  for (const Tensor& tensor : tensors_) {
    add(tensor.name, tensor.dtype, {static_cast<uint64_t>(tokens), config_.head_dim});
  }
  const std::string json = header.dump();
  const uint64_t aligned = (json.size() + 7) / 8 * 8;
  const uint64_t length = std::max<uint64_t>(aligned + kLengthBytes, data_offset_) - kLengthBytes;
  std::string text(kLengthBytes, '\0');
  std::memcpy(text.data(), &length, kLengthBytes);
  text += json;
  text.resize(kLengthBytes + length, ' ');
  return text;
}

absl::Status QkvDumpWriter::WriteAt(uint64_t offset, const void* bytes, size_t count) const {
  const char* from = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t written = ::pwrite(fd_.get(), from, count, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      return absl::ErrnoToStatus(
          errno, absl::StrCat(path_, ": cannot write ", count, " bytes at ", offset));
    }
    from += written;
    count -= static_cast<size_t>(written);
    offset += static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

absl::Status QkvDumpWriter::WriteRows(const Tensor& tensor, const AttentionStep& step,
                                      const float* rows, size_t stride) {
  const uint64_t row_bytes = RowBytes(tensor);
  buffer_.resize(step.tokens * row_bytes);
  for (size_t i = 0; i < step.tokens; ++i) {
    if (EncodeKv(rows + i * stride, KvDtype::kFloat32, tensor.dtype, config_.head_dim,
                 buffer_.data() + i * row_bytes)
            .has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": tensor \"", tensor.name, "\": token ", step.position + static_cast<int64_t>(i),
          " is not finite as ", KvDtypeName(tensor.dtype)));
    }
  }
  return WriteAt(tensor.offset + static_cast<uint64_t>(step.position) * row_bytes, buffer_.data(),
                 buffer_.size());
}

absl::Status QkvDumpWriter::Add(const AttentionStep& step) {
  int64_t& tokens = tokens_[step.layer];
  if (step.position > tokens) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": layer ", step.layer, " has ", tokens,
                                                   " tokens, so position ", step.position,
                                                   " is not the next"));
  }
  const int64_t end = step.position + static_cast<int64_t>(step.tokens);
  if (end > options_.max_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat(path_, ": layer ", step.layer, ": ", end,
                                                     " tokens are more than the ",
                                                     options_.max_tokens, " foreseen"));
  }
  const size_t dim = config_.head_dim;
  size_t at = step.layer * (config_.query_heads + 2 * config_.kv_heads);
  absl::Status status;
  const auto add = [&](absl::Span<const float> rows, size_t heads) {
    for (size_t head = 0; head < heads && status.ok(); ++head) {
      status = WriteRows(tensors_[at++], step, rows.data() + head * dim, heads * dim);
    }
  };
  add(step.query, config_.query_heads);
  add(step.key, config_.kv_heads);
  add(step.value, config_.kv_heads);
  if (status.ok()) tokens = end;
  return status;
}

absl::Status QkvDumpWriter::MoveDown(const Tensor& tensor, uint64_t to, uint64_t bytes) {
  buffer_.resize(kMoveBytes);
  for (uint64_t done = 0; done < bytes;) {
    const size_t piece = static_cast<size_t>(std::min<uint64_t>(kMoveBytes, bytes - done));
    const ssize_t got =
        ::pread(fd_.get(), buffer_.data(), piece, static_cast<off_t>(tensor.offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path_, ": cannot read back"));
    if (got == 0) return absl::DataLossError(absl::StrCat(path_, ": became shorter"));
    const auto count = static_cast<size_t>(got);
    if (absl::Status status = WriteAt(to + done, buffer_.data(), count); !status.ok()) {
      return status;
    }
    done += count;
  }
  return absl::OkStatus();
}

absl::Status QkvDumpWriter::Finish() {
  const int64_t tokens = *std::min_element(tokens_.begin(), tokens_.end());
  const std::string header = Header(tokens);
  absl::Status status = WriteAt(0, header.data(), header.size());
  const auto prompt_tokens = static_cast<float>(std::min(options_.prompt_tokens, tokens));
  if (status.ok()) status = WriteAt(data_offset_, &prompt_tokens, sizeof(prompt_tokens));
  // Ascending and only towards the front, so that nothing is overwritten before it has moved.
  uint64_t to = data_offset_ + sizeof(prompt_tokens);
  for (const Tensor& tensor : tensors_) {
    const uint64_t bytes = RowBytes(tensor) * static_cast<uint64_t>(tokens);
    if (status.ok() && to != tensor.offset) status = MoveDown(tensor, to, bytes);
    to += bytes;
  }
  if (!status.ok()) return status;
  if (::ftruncate(fd_.get(), static_cast<off_t>(to)) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path_, ": cannot end at byte ", to));
  }
  if (std::rename(UnfinishedPath(path_).c_str(), path_.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path_, ": cannot replace"));
  }
  finished_ = true;
  return absl::OkStatus();
}

}  // namespace terrace
