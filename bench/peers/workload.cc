#include "bench/peers/workload.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "bench/ops_file.h"
#include "io/aligned_buffer.h"
#include "io/checksum.h"

namespace terrace::peers {
namespace {

constexpr size_t kUniformBatch = 16;

// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
uint64_t Mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

// Distinct ids out of `ids`. REQUIRES: size <= ids.size().
Batch Draw(absl::Span<const uint64_t> ids, size_t size, std::mt19937_64& random) {
  Batch batch;
  while (batch.size() < size) {
    const uint64_t drawn = ids[random() % ids.size()];
    if (std::find(batch.begin(), batch.end(), drawn) == batch.end()) batch.push_back(drawn);
  }
  return batch;
}

}  // namespace

absl::StatusOr<Workload> Workload::Make(const WorkloadOptions& options) {
  Workload workload(options);
  if (options.ops_path.empty()) {
    workload.MakeUpOperations();
  } else if (absl::Status read = workload.ReadOperations(); !read.ok()) {
    return read;
  }
  if (workload.ids_.empty()) return absl::InvalidArgumentError("the operations put no block");
  std::mt19937_64 random(options.seed);
  workload.pattern_.resize(options.block_bytes / sizeof(uint64_t));
  for (uint64_t& word : workload.pattern_) word = random();
  auto buffer = AlignedBuffer::Create(options.block_bytes);
  if (!buffer.ok()) return buffer.status();
  for (uint64_t id : workload.ids_) {
    workload.Generate(id, buffer->span());
    workload.checksums_[id] = Checksum64(buffer->span());
  }
  workload.MakeGets();
  return workload;
}

absl::Status Workload::ReadOperations() {
  const absl::StatusOr<std::vector<BlockOp>> ops = ReadBlockOps(options_.ops_path);
  if (!ops.ok()) return ops.status();
  for (const BlockOp& op : *ops) {
    if (!op.put) {
      AddGet(op.ids);
    } else if (!AddPut(op.ids[0])) {
      break;
    }
  }
  return absl::OkStatus();
}

void Workload::MakeUpOperations() {
  std::mt19937_64 random(options_.seed);
  for (uint64_t id = 0; AddPut(id); ++id) {
    if (ids_.size() % kUniformBatch == 0) AddGet(Draw(ids_, kUniformBatch, random));
  }
}

bool Workload::AddPut(uint64_t id) {
  if (checksums_.contains(id)) return true;
  if (ids_.size() == options_.max_blocks) return false;
  checksums_[id] = 0;
  ids_.push_back(id);
  // Puts that follow each other are one call.
  if (operations_.empty() || operations_.back().kind != Operation::Kind::kPut ||
      operations_.back().ids.size() == options_.max_batch) {
    operations_.push_back({Operation::Kind::kPut, {}});
  }
  operations_.back().ids.push_back(id);
  return true;
}

void Workload::AddGet(absl::Span<const uint64_t> ids) {
  Batch batch;
  const auto add_batch = [&] {
    if (batch.empty()) return;
    trace_gets_.push_back(batch);
    operations_.push_back({Operation::Kind::kGet, std::move(batch)});
    batch.clear();
  };
  for (uint64_t id : ids) {
    if (!checksums_.contains(id)) continue;
    batch.push_back(id);
    if (batch.size() == options_.max_batch) add_batch();
  }
  add_batch();
}

void Workload::MakeGets() {
  std::mt19937_64 random(options_.seed + 1);
  const size_t size = std::min({kUniformBatch, options_.max_batch, ids_.size()});
  for (size_t i = 0; i < options_.uniform_batches; ++i) {
    uniform_gets_.push_back(Draw(ids_, size, random));
  }
}

void Workload::Generate(uint64_t id, absl::Span<std::byte> block) const {
  const uint64_t mask = Mix(id + 1);
  for (size_t i = 0; i < pattern_.size(); ++i) {
    const uint64_t word = pattern_[i] ^ mask;
    std::memcpy(block.data() + i * sizeof(word), &word, sizeof(word));
  }
}

bool Workload::IsRight(uint64_t id, absl::Span<const std::byte> block) const {
  const auto found = checksums_.find(id);
  return found != checksums_.end() && block.size() == options_.block_bytes &&
         Checksum64(block) == found->second;
}

}  // namespace terrace::peers
