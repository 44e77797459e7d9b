#include "tests/support/made_up_keys.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr size_t kCentres = 24;
constexpr float kSpread = 0.6f;  // around a centre, of elements with variance 1
constexpr uint64_t kCentreSeed = 17;
constexpr uint64_t kKeySeed = 18;

}  // namespace

MadeUpKeys::MadeUpKeys(const std::vector<float>& values, size_t head_dim, KvDtype dtype,
                       size_t panel_keys)
    : head_dim_(head_dim), dtype_(dtype), panel_keys_(panel_keys), values_(values.size()) {
  const size_t panel_elements = panel_keys * head_dim;
  for (size_t begin = 0; begin < values.size(); begin += panel_elements) {
    const size_t count = std::min(panel_elements, values.size() - begin);
    std::vector<std::byte>& panel = panels_.emplace_back(count * KvDtypeBytes(dtype));
    EncodeKv(values.data() + begin, KvDtype::kFloat32, dtype, count, panel.data());
    DecodeKv(panel.data(), dtype, count, values_.data() + begin);
  }
}

MadeUpKeys MadeUpKeys::Clustered(size_t count, size_t head_dim, KvDtype dtype, size_t panel_keys) {
  return MadeUpKeys(ClusteredRows(count, head_dim, kKeySeed), head_dim, dtype, panel_keys);
}

KeyPanels MadeUpKeys::Prefix(size_t count) const {
  KeyPanels panels(head_dim_, dtype_, panel_keys_);
  for (size_t key = 0; key < count; key += panel_keys_) {
    panels.Add(panels_[key / panel_keys_].data(), std::min(panel_keys_, count - key));
  }
  return panels;
}

double MadeUpKeys::Score(const float* query, size_t key) const {
  double sum = 0;
  for (size_t i = 0; i < head_dim_; ++i) {
    sum += double{query[i]} * double{values_[key * head_dim_ + i]};
  }
  return sum;
}

double MadeUpKeys::Tolerance(const float* query, size_t key) const {
  double magnitude = 0;
  for (size_t i = 0; i < head_dim_; ++i) {
    magnitude += std::abs(double{query[i]} * double{values_[key * head_dim_ + i]});
  }
  return magnitude * static_cast<double>(head_dim_) * std::numeric_limits<float>::epsilon();
}

double MadeUpKeys::ScoreOfRank(const float* query, size_t count, size_t k) const {
  std::vector<double> scores(count);
  for (size_t key = 0; key < count; ++key) scores[key] = Score(query, key);
  const auto rank = scores.begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(scores.begin(), rank, scores.end(), std::greater<>());
  return *rank;
}

std::vector<float> ClusteredRows(size_t rows, size_t head_dim, uint64_t seed) {
  std::normal_distribution<float> normal;
  std::mt19937_64 centre_random(kCentreSeed);
  std::vector<float> centres(kCentres * head_dim);
  for (float& element : centres) element = normal(centre_random);
  std::mt19937_64 random(seed);
  std::vector<float> values(rows * head_dim);
  for (size_t row = 0; row < rows; ++row) {
    const float* const centre = centres.data() + random() % kCentres * head_dim;
    for (size_t i = 0; i < head_dim; ++i) {
      values[row * head_dim + i] = centre[i] + kSpread * normal(random);
    }
  }
  return values;
}

}  // namespace terrace
