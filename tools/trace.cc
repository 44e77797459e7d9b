#include "tools/trace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace terrace {
namespace {

constexpr size_t kReadBytes = size_t{64} << 10;

constexpr absl::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr absl::string_view kGzipMagic = "\x1f\x8b";
constexpr absl::string_view kZstdMagic = "\x28\xb5\x2f\xfd";

// Cuts a stream into lines through one buffer, which holds no more than the current line and one
// read chunk.
class LineReader {
 public:
  enum class Result : uint8_t { kLine, kTooLong, kEnd };

  // Borrows `fd`.
  LineReader(int fd, const std::string& path, uint64_t max_line_bytes)
      : fd_(fd), path_(path), max_line_bytes_(max_line_bytes) {}

  // The first bytes of the stream, at most `bytes`. REQUIRES: before the first Next.
  absl::StatusOr<absl::string_view> Peek(size_t bytes) {
    while (buffer_.size() < bytes && !at_end_) {
      if (absl::Status status = Fill(); !status.ok()) return status;
    }
    return absl::string_view(buffer_).substr(0, bytes);
  }

  // Drops bytes that Peek returned.
  void Skip(size_t bytes) { scanned_ = begin_ = bytes; }

  // Sets `line`, without its end-of-line, for kLine; valid until the next call. A line that is too
  // long is dropped as it streams by.
  absl::StatusOr<Result> Next(absl::string_view& line) {
    bool too_long = false;
    while (true) {
      const size_t newline = buffer_.find('\n', scanned_);
      const bool complete = newline != std::string::npos;
      if (complete || at_end_) {
        const size_t end = complete ? newline : buffer_.size();
        line = absl::string_view(buffer_).substr(begin_, end - begin_);
        const bool nothing = !complete && line.empty();
        too_long = too_long || line.size() > max_line_bytes_;
        begin_ = scanned_ = complete ? newline + 1 : end;
        if (too_long) return Result::kTooLong;
        if (nothing) return Result::kEnd;
        absl::ConsumeSuffix(&line, "\r");
        return Result::kLine;
      }
      too_long = too_long || buffer_.size() - begin_ > max_line_bytes_;
      if (too_long) begin_ = buffer_.size();
      scanned_ = buffer_.size();
      if (absl::Status status = Fill(); !status.ok()) return status;
    }
  }

 private:
  absl::Status Fill() {
    buffer_.erase(0, begin_);
    scanned_ -= begin_;
    begin_ = 0;
    const size_t old_size = buffer_.size();
    buffer_.resize(old_size + kReadBytes);
    ssize_t got = 0;
    do {
      got = ::read(fd_, buffer_.data() + old_size, kReadBytes);
    } while (got < 0 && errno == EINTR);
    const int error = errno;
    buffer_.resize(old_size + (got > 0 ? static_cast<size_t>(got) : 0));
    if (got < 0) {
      return absl::ErrnoToStatus(error,
                                 absl::StrCat(path_, ": cannot read at offset ", stream_bytes_));
    }
    at_end_ = got == 0;
    stream_bytes_ += static_cast<uint64_t>(got);
    return absl::OkStatus();
  }

  const int fd_;
  const std::string& path_;
  const uint64_t max_line_bytes_;
  std::string buffer_;
  size_t begin_ = 0;    // of the current line in `buffer_`
  size_t scanned_ = 0;  // no newline in [begin_, scanned_)
  uint64_t stream_bytes_ = 0;
  bool at_end_ = false;
};

// Says what a file that is plainly no text trace is, and passes over a byte order mark.
absl::Status CheckStart(const std::string& path, LineReader& lines) {
  absl::StatusOr<absl::string_view> start = lines.Peek(kZstdMagic.size());
  if (!start.ok()) return start.status();
  if (absl::StartsWith(*start, kGzipMagic)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is gzip-compressed; decompress it first"));
  }
  if (absl::StartsWith(*start, kZstdMagic)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is zstd-compressed; decompress it first"));
  }
  if (absl::StartsWith(*start, kByteOrderMark)) lines.Skip(kByteOrderMark.size());
  return absl::OkStatus();
}

// Feeds lines into a trace and keeps the line numbers that errors need.
class TraceBuilder {
 public:
  TraceBuilder(const std::string& path, const TraceReadOptions& options)
      : path_(path), options_(options) {}

  bool full() const {
    return options_.max_requests != 0 && trace_.requests().size() >= options_.max_requests;
  }

  absl::Status AddTooLong() {
    ++line_number_;
    if (absl::Status status = SettleBlankLines(); !status.ok()) return status;
    return Bad(line_number_,
               absl::StrCat("the line is longer than ", options_.max_line_bytes, " bytes"));
  }

  absl::Status Add(absl::string_view line) {
    ++line_number_;
    if (absl::StripAsciiWhitespace(line).empty()) {
      ++blank_lines_;
      return absl::OkStatus();
    }
    if (absl::Status status = SettleBlankLines(); !status.ok()) return status;
    if (absl::Status status = ParseTraceLine(line, request_); !status.ok()) {
      return Bad(line_number_, status.message());
    }
    if (request_.hash_ids.size() > options_.max_block_refs - trace_.block_refs()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ":", line_number_, ": field \"hash_ids\": the trace has more than ",
                       options_.max_block_refs, " ids, the limit"));
    }
    trace_.Append(request_);
    return absl::OkStatus();
  }

  absl::StatusOr<Trace> Finish() && {
    if (trace_.requests().empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": holds no requests",
          skipped_lines_ == 0 ? "" : absl::StrCat(" (", skipped_lines_, " bad lines skipped)")));
    }
    trace_.set_skipped_lines(skipped_lines_);
    trace_.ShrinkToFit();
    return std::move(trace_);
  }

 private:
  // Blank lines are fine at the end of the file, so they are bad only once another line follows.
  absl::Status SettleBlankLines() {
    for (; blank_lines_ > 0; --blank_lines_) {
      absl::Status status =
          Bad(line_number_ - blank_lines_, "the line is blank, expected a JSON object");
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Bad(uint64_t line_number, absl::string_view what) {
    if (!options_.skip_bad_lines) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ":", line_number, ": ", what));
    }
    ++skipped_lines_;
    return absl::OkStatus();
  }

  const std::string& path_;
  const TraceReadOptions& options_;
  Trace trace_;
  TraceLine request_;
  uint64_t line_number_ = 0;  // of the last line added, from 1
  uint64_t blank_lines_ = 0;  // immediately before the next line
  uint64_t skipped_lines_ = 0;
};

}  // namespace

void Trace::Append(const TraceLine& request) {
  TraceRequest entry;
  entry.timestamp_ms = request.timestamp_ms;
  entry.input_length = request.input_length;
  entry.output_length = request.output_length;
  entry.first_hash_id = hash_ids_.size();
  entry.hash_id_count = request.hash_ids.size();
  requests_.push_back(entry);
  hash_ids_.insert(hash_ids_.end(), request.hash_ids.begin(), request.hash_ids.end());
}

void Trace::ShrinkToFit() {
  requests_.shrink_to_fit();
  hash_ids_.shrink_to_fit();
}

absl::StatusOr<Trace> ReadTrace(const std::string& path, const TraceReadOptions& options) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  absl::Cleanup close_fd = [fd] { ::close(fd); };
  struct stat info = {};
  if (::fstat(fd, &info) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot stat"));
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is a directory, expected a trace file"));
  }

  LineReader lines(fd, path, options.max_line_bytes);
  if (absl::Status status = CheckStart(path, lines); !status.ok()) return status;
  TraceBuilder builder(path, options);
  while (!builder.full()) {
    absl::string_view line;
    absl::StatusOr<LineReader::Result> result = lines.Next(line);
    if (!result.ok()) return result.status();
    if (*result == LineReader::Result::kEnd) break;
    absl::Status status =
        *result == LineReader::Result::kLine ? builder.Add(line) : builder.AddTooLong();
    if (!status.ok()) return status;
  }
  return std::move(builder).Finish();
}

}  // namespace terrace
