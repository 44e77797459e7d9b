#include "tests/support/power_cut_device.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "io/check.h"

namespace terrace {
namespace {

// A part of a write that the disk either has or has not when the power is gone.
struct Piece {
  uint64_t offset = 0;
  const std::byte* bytes = nullptr;
  size_t byte_count = 0;
};

// How much of what was not durable a cut leaves.
struct DamageKind {
  explicit DamageKind(std::mt19937_64& random) {
    constexpr double kFew = 0.05;
    std::uniform_real_distribution<double> any(0, 1);
    const uint64_t kind = random() % 8;
    keeps_all = kind == 0;
    kept_fraction = kind == 1 ? 0 : kind <= 3 ? kFew * any(random) : any(random);
    const uint64_t cut_kind = random() % 3;
    split_fraction = cut_kind == 0 ? 0 : cut_kind == 1 ? 1 : any(random);
  }
  bool keeps_all = false;
  double kept_fraction = 0;   // of the pieces
  double split_fraction = 0;  // of the writes: into sectors, the others are one piece
};

}  // namespace

PowerCutDisk::PowerCutDisk(const PowerCutDiskOptions& options)
    : size_bytes_(options.size_bytes),
      current_(options.size_bytes),
      durable_(options.size_bytes),
      random_(options.seed) {
  TERRACE_CHECK(size_bytes_ > 0 && IsPageAligned(size_bytes_));
}

PowerCutDisk::~PowerCutDisk() {
  absl::MutexLock lock(&mu_);
  TERRACE_CHECK(ports_.empty());
}

void PowerCutDisk::Cut(uint64_t seed, Loss loss) {
  absl::MutexLock lock(&mu_);
  CutUnderLock(seed, loss);
}

void PowerCutDisk::CutAfter(uint64_t count, uint64_t seed, Loss loss) {
  TERRACE_CHECK(count > 0);
  absl::MutexLock lock(&mu_);
  cut_in_ = count;
  cut_seed_ = seed;
  cut_loss_ = loss;
}

void PowerCutDisk::Restore() {
  absl::MutexLock lock(&mu_);
  // Without a cut before it, this would lose what is cached without anybody having said how.
  TERRACE_CHECK(off_);
  current_ = durable_;
  cut_in_ = 0;
  off_ = false;
}

bool PowerCutDisk::off() const {
  absl::MutexLock lock(&mu_);
  return off_;
}

uint64_t PowerCutDisk::completed_count() const {
  absl::MutexLock lock(&mu_);
  return completed_count_;
}

std::vector<std::byte> PowerCutDisk::current() const {
  absl::MutexLock lock(&mu_);
  return current_;
}

std::vector<std::byte> PowerCutDisk::durable() const {
  absl::MutexLock lock(&mu_);
  return durable_;
}

void PowerCutDisk::Attach(Port& port) {
  absl::MutexLock lock(&mu_);
  ports_.push_back(&port);
}

void PowerCutDisk::Detach(Port& port) {
  std::array<IoRequest*, 64> done;
  absl::MutexLock lock(&mu_);
  while (!port.pending.empty()) Complete(port, absl::MakeSpan(done));
  ports_.erase(std::find(ports_.begin(), ports_.end(), &port));
}

void PowerCutDisk::Submit(Port& port, IoRequest& request, bool finished) {
  absl::MutexLock lock(&mu_);
  if (finished || off_) {
    if (!finished) Advance(request, -EIO);
    port.finished.PushBack(&request);
  } else {
    port.pending.push_back({&request, drained_count_ + cached_.size()});
  }
}

size_t PowerCutDisk::Poll(Port& port, absl::Span<IoRequest*> done) {
  absl::MutexLock lock(&mu_);
  return Complete(port, done);
}

size_t PowerCutDisk::Wait(Port& port, absl::Span<IoRequest*> done) {
  const auto must_return = [&port] {
    return port.woken || !port.finished.empty() || !port.pending.empty();
  };
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&must_return));
  port.woken = false;
  return Complete(port, done);
}

void PowerCutDisk::Wake(Port& port) {
  absl::MutexLock lock(&mu_);
  port.woken = true;
}

bool PowerCutDisk::Discard(uint64_t offset, uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  if (off_) return false;
  Cache({.offset = offset, .bytes = std::vector<std::byte>(bytes)});
  return true;
}

size_t PowerCutDisk::Complete(Port& port, absl::Span<IoRequest*> done) {
  size_t count = 0;
  while (count < done.size() && !port.finished.empty()) done[count++] = port.finished.PopFront();
  const size_t most = std::min(done.size() - count, port.pending.size());
  for (size_t left = most == 0 ? 0 : 1 + random_() % most; left > 0; --left) {
    std::swap(port.pending[random_() % port.pending.size()], port.pending.back());
    const Pending pending = port.pending.back();
    port.pending.pop_back();
    Carry(pending);
    done[count++] = pending.request;
    ++completed_count_;
    if (cut_in_ == 0 || --cut_in_ > 0) continue;
    CutUnderLock(cut_seed_, cut_loss_);
    break;
  }
  while (count < done.size() && !port.finished.empty()) done[count++] = port.finished.PopFront();
  return count;
}

void PowerCutDisk::Carry(const Pending& pending) {
  IoRequest& request = *pending.request;
  switch (request.op) {
    case IoOp::kRead: {
      const std::byte* from = current_.data() + request.offset;
      for (const iovec& buffer : request.buffers) {
        std::memcpy(buffer.iov_base, from, buffer.iov_len);
        from += buffer.iov_len;
      }
      break;
    }
    case IoOp::kWrite:
      Cache(Gather(request));
      break;
    case IoOp::kSync:
      while (drained_count_ < pending.covered) DrainOne();
      break;
  }
  Advance(request, static_cast<int64_t>(request.length()));
}

PowerCutDisk::Write PowerCutDisk::Gather(const IoRequest& request) {
  Write write = {.offset = request.offset, .bytes = {}};
  write.bytes.reserve(request.length());
  for (const iovec& buffer : request.buffers) {
    const auto* const bytes = static_cast<const std::byte*>(buffer.iov_base);
    write.bytes.insert(write.bytes.end(), bytes, bytes + buffer.iov_len);
  }
  return write;
}

void PowerCutDisk::Cache(Write write) {
  std::copy(write.bytes.begin(), write.bytes.end(),
            current_.begin() + static_cast<ptrdiff_t>(write.offset));
  cached_bytes_ += write.bytes.size();
  cached_.push_back(std::move(write));
  while (cached_bytes_ > size_bytes_) DrainOne();
}

void PowerCutDisk::DrainOne() {
  const Write& oldest = cached_.front();
  std::copy(oldest.bytes.begin(), oldest.bytes.end(),
            durable_.begin() + static_cast<ptrdiff_t>(oldest.offset));
  cached_bytes_ -= oldest.bytes.size();
  cached_.pop_front();
  ++drained_count_;
}

void PowerCutDisk::CutUnderLock(uint64_t seed, Loss loss) {
  if (off_) return;
  off_ = true;
  cut_in_ = 0;
  // What is in flight may be anywhere between its memory and the disk.
  std::vector<Write> writes(std::make_move_iterator(cached_.begin()),
                            std::make_move_iterator(cached_.end()));
  drained_count_ += cached_.size();
  cached_.clear();
  cached_bytes_ = 0;
  for (Port* port : ports_) {
    for (const Pending& pending : port->pending) {
      if (pending.request->op == IoOp::kWrite) writes.push_back(Gather(*pending.request));
      Advance(*pending.request, -EIO);
      port->finished.PushBack(pending.request);
    }
    port->pending.clear();
  }
  Damage(writes, seed, loss);
}

void PowerCutDisk::Damage(const std::vector<Write>& writes, uint64_t seed, Loss loss) {
  std::mt19937_64 random(seed);
  DamageKind kind(random);
  kind.keeps_all = kind.keeps_all || loss == Loss::kNothing;
  std::vector<Piece> pieces;
  std::bernoulli_distribution split(kind.split_fraction);
  std::bernoulli_distribution kept(kind.kept_fraction);
  for (const Write& write : writes) {
    const size_t piece_bytes = !kind.keeps_all && split(random) ? kSectorBytes : write.bytes.size();
    for (size_t start = 0; start < write.bytes.size(); start += piece_bytes) {
      if (!kind.keeps_all && !kept(random)) continue;
      pieces.push_back({write.offset + start, write.bytes.data() + start, piece_bytes});
    }
  }
  // The disk writes its cache in an order of its own. Where it got through, the last write counts.
  if (!kind.keeps_all) std::shuffle(pieces.begin(), pieces.end(), random);
  for (const Piece& piece : pieces) {
    std::memcpy(durable_.data() + piece.offset, piece.bytes, piece.byte_count);
  }
}

PowerCutDevice::PowerCutDevice(std::shared_ptr<PowerCutDisk> disk, size_t depth)
    : disk_(std::move(disk)) {
  info_.path = "power cut disk";
  info_.engine = IoEngine::kMemory;
  info_.engine_reason = "asked for";
  info_.direct_reason = "memory has no page cache";
  info_.size_bytes = disk_->size_bytes();
  info_.depth = depth;
  disk_->Attach(port_);
}

PowerCutDevice::~PowerCutDevice() { disk_->Detach(port_); }

absl::StatusOr<std::unique_ptr<BlockDevice>> PowerCutDevice::Clone() const {
  return std::make_unique<PowerCutDevice>(disk_, info_.depth);
}

absl::Status PowerCutDevice::Discard(uint64_t offset, uint64_t bytes) {
  if (absl::Status status = CheckRange(offset, bytes); !status.ok()) return status;
  if (disk_->Discard(offset, bytes)) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(info_.path, ": discard of ", bytes, " bytes at offset ",
                                          offset, ": the power is off"));
}

void PowerCutDevice::Submit(absl::Span<IoRequest* const> batch) {
  for (IoRequest* request : batch) {
    const bool finished = !Admit(*request);
    disk_->Submit(port_, *request, finished);
  }
}

size_t PowerCutDevice::Poll(absl::Span<IoRequest*> done) { return disk_->Poll(port_, done); }

size_t PowerCutDevice::Wait(absl::Span<IoRequest*> done) {
  TERRACE_CHECK(!done.empty());
  return disk_->Wait(port_, done);
}

void PowerCutDevice::Wake() { disk_->Wake(port_); }

}  // namespace terrace
