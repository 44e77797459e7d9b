#include "runtime/query_samples.h"

#include <algorithm>
#include <utility>

#include "index/kv_convert.h"
#include "index/vector_bytes.h"

namespace terrace {
namespace {

// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
uint64_t Mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

void QuerySamples::Add(absl::Span<const float> queries) {
  for (size_t at = 0; at + head_dim_ <= queries.size(); at += head_dim_) {
    const uint64_t number = offered_++;
    size_t place = size();
    if (place == capacity_) {
      place = Mix(number) % (number + 1);
      if (place >= capacity_) continue;
    }
    const absl::Span<const float> row = queries.subspan(at, head_dim_);
    constexpr float kLargest = 65504;
    if (!std::all_of(row.begin(), row.end(),
                     [](float x) { return x >= -kLargest && x <= kLargest; })) {
      continue;
    }
    if (place == size()) halves_.resize(halves_.size() + head_dim_);
    EncodeKv(row.data(), KvDtype::kFloat32, KvDtype::kFloat16, head_dim_,
             halves_.data() + place * head_dim_);
  }
}

std::vector<float> QuerySamples::Rows() const {
  std::vector<float> rows(halves_.size());
  DecodeKv(halves_.data(), KvDtype::kFloat16, halves_.size(), rows.data());
  return rows;
}

void QuerySamples::Save(std::vector<std::byte>& bytes) const {
  WriteVector(std::vector<uint64_t>{offered_, size()}, bytes);
  WriteVector(halves_, bytes);
}

bool QuerySamples::Load(absl::Span<const std::byte> bytes) {
  Clear();
  VectorReader reader(bytes);
  std::vector<uint64_t> counts;
  std::vector<uint16_t> halves;
  if (!reader.Read(2, counts) || counts[1] > capacity_ || counts[0] < counts[1] ||
      !reader.Read(counts[1] * head_dim_, halves) || !reader.empty()) {
    return false;
  }
  offered_ = counts[0];
  halves_ = std::move(halves);
  return true;
}

void QuerySamples::Clear() {
  offered_ = 0;
  halves_.clear();
  halves_.shrink_to_fit();
}

}  // namespace terrace
