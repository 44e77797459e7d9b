#include "runtime/checked_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "xxhash.h"

namespace terrace {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

absl::Status ErrnoError(const std::string& path, absl::string_view what, int error) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", strerror(error));
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  if (error == ENOENT) return absl::NotFoundError(message);
  return absl::UnavailableError(message);
}

std::string Directory(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

}  // namespace

struct SectionHash {
  SectionHash() { XXH3_64bits_reset(state); }
  ~SectionHash() { XXH3_freeState(state); }
  void Update(const void* bytes, size_t size) { XXH3_64bits_update(state, bytes, size); }
  // Of what was added since the last Take.
  uint64_t Take() {
    const uint64_t hash = XXH3_64bits_digest(state);
    XXH3_64bits_reset(state);
    return hash;
  }
  XXH3_state_t* const state = XXH3_createState();
};

CheckedFileWriter::CheckedFileWriter(const std::string& path)
    : path_(path), temporary_(path + ".new"), hash_(std::make_unique<SectionHash>()) {
  buffer_.reserve(kBufferBytes);
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd_ < 0) Fail("open");
}

CheckedFileWriter::~CheckedFileWriter() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_) ::unlink(temporary_.c_str());
}

void CheckedFileWriter::Fail(const char* what) {
  if (status_.ok()) status_ = ErrnoError(temporary_, what, errno);
}

void CheckedFileWriter::Write(const void* bytes, size_t size) {
  hash_->Update(bytes, size);
  const auto* from = static_cast<const std::byte*>(bytes);
  while (size > 0) {
    const size_t part = std::min(size, kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), from, from + part);
    from += part;
    size -= part;
    if (buffer_.size() == kBufferBytes) WriteOut();
  }
}

void CheckedFileWriter::WriteOut() {
  size_t done = 0;
  while (status_.ok() && done < buffer_.size()) {
    const ssize_t wrote = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (wrote >= 0) {
      done += static_cast<size_t>(wrote);
    } else if (errno != EINTR) {
      Fail("write");
    }
  }
  buffer_.clear();
}

void CheckedFileWriter::EndSection() {
  const uint64_t checksum = hash_->Take();
  Write(checksum);
  hash_->Take();
}

absl::Status CheckedFileWriter::Commit() {
  WriteOut();
  if (status_.ok() && ::fsync(fd_) != 0) Fail("fsync");
  if (status_.ok() && ::rename(temporary_.c_str(), path_.c_str()) != 0) Fail("rename");
  if (!status_.ok()) return status_;
  committed_ = true;
  const int directory = ::open(Directory(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0 || ::fsync(directory) != 0) Fail("fsync of its directory");
  if (directory >= 0) ::close(directory);
  return status_;
}

absl::StatusOr<std::unique_ptr<CheckedFileReader>> CheckedFileReader::Open(
    const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError(path, "open", errno);
  struct stat stat = {};
  absl::Status status;
  if (::fstat(fd, &stat) != 0) {
    status = ErrnoError(path, "stat", errno);
  } else if (!S_ISREG(stat.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  }
  if (!status.ok()) {
    ::close(fd);
    return status;
  }
  return std::unique_ptr<CheckedFileReader>(
      new CheckedFileReader(path, fd, static_cast<uint64_t>(stat.st_size)));
}

CheckedFileReader::CheckedFileReader(const std::string& path, int fd, uint64_t size)
    : path_(path),
      fd_(fd),
      left_(size),
      buffer_(kBufferBytes),
      hash_(std::make_unique<SectionHash>()) {}

CheckedFileReader::~CheckedFileReader() { ::close(fd_); }

absl::Status CheckedFileReader::Damaged(absl::string_view what) const {
  return absl::DataLossError(absl::StrCat(path_, ": ", what));
}

absl::Status CheckedFileReader::ReadRaw(void* bytes, size_t size) {
  auto* to = static_cast<std::byte*>(bytes);
  if (size > left_) return Damaged("the file ends too early");
  left_ -= size;
  while (size > 0) {
    if (begin_ == end_) {
      const ssize_t got = ::read(fd_, buffer_.data(), buffer_.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoError(path_, "read", errno);
      if (got == 0) return Damaged("the file ends too early");
      begin_ = 0;
      end_ = static_cast<size_t>(got);
    }
    const size_t part = std::min(size, end_ - begin_);
    std::memcpy(to, buffer_.data() + begin_, part);
    begin_ += part;
    to += part;
    size -= part;
  }
  return absl::OkStatus();
}

absl::Status CheckedFileReader::Read(void* bytes, size_t size) {
  absl::Status status = ReadRaw(bytes, size);
  if (status.ok()) hash_->Update(bytes, size);
  return status;
}

absl::Status CheckedFileReader::Skip(uint64_t size) {
  if (size > left_) return Damaged("the file ends too early");
  std::byte bytes[4096];
  for (uint64_t part; size > 0; size -= part) {
    part = std::min<uint64_t>(size, sizeof(bytes));
    if (absl::Status status = Read(bytes, part); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckedFileReader::EndSection() {
  const uint64_t expected = hash_->Take();
  uint64_t checksum = 0;
  if (absl::Status status = ReadRaw(&checksum, sizeof(checksum)); !status.ok()) return status;
  if (checksum != expected) return Damaged("its checksum is wrong");
  return absl::OkStatus();
}

}  // namespace terrace
