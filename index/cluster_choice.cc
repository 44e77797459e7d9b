#include <algorithm>

#include "index/cluster_kernels.h"
#include "index/cluster_table.h"
#include "index/largest_worth.h"
#include "index/prefetch.h"

// How a ClusterTable chooses what is read.
namespace terrace {
namespace {

// Clusters lie apart, where the processor does not see them coming: so many ahead are asked for.
constexpr size_t kPrefetched = 16;

}  // namespace

void ClusterTable::Rank(ClusterScores& scores, const ClusterBudget& budget,
                        std::vector<uint32_t>& chosen) const {
  // Even less than a cluster buys one.
  const size_t most = std::max<size_t>(budget.keys / cluster_keys(), 1);
  WorthCut(scores.worth, most, scores.bin).Collect(scores.worth, chosen);
  const float least = budget.min_share * static_cast<float>(scores.rows * cluster_keys());
  std::erase_if(chosen, [&](uint32_t c) { return scores.worth[c] < least; });
  std::sort(chosen.begin(), chosen.end(), [&](uint32_t a, uint32_t b) {
    return scores.worth[a] != scores.worth[b] ? scores.worth[a] > scores.worth[b] : a < b;
  });
}

void ClusterTable::RankKeys(ClusterScores& scores, const ClusterBudget& budget,
                            KeyChoice& chosen) const {
  const size_t size = cluster_keys();
  const size_t known = scores.scanned.size() * size;
  scores.key_worth.assign(known, 0.0f);
  for (size_t row = 0; row < scores.rows; ++row) {
    const auto per_mass = static_cast<float>(1 / scores.totals[row]);
    AddShares(scores.key_masses.data() + row * known, known, per_mass, scores.key_worth.data());
  }
  for (float& worth : scores.key_worth) worth = worth > 0 ? worth : 0;
  WorthCut(scores.key_worth, budget.keys, scores.bin).Collect(scores.key_worth, scores.taken);
  const float least = budget.min_share * static_cast<float>(scores.rows);
  std::erase_if(scores.taken, [&](uint32_t key) { return scores.key_worth[key] < least; });
  // Where all keys that are known are wanted, also clusters that are not.
  ChooseUnscanned(scores, budget.keys > known ? (budget.keys - known) / size : 0,
                  least * static_cast<float>(size));
  chosen.clusters.clear();
  chosen.begins.assign(1, 0);
  chosen.places.clear();
  size_t whole = 0;
  for (size_t i = 0; i < scores.taken.size() || whole < scores.unscanned.size();) {
    const bool has_key = i < scores.taken.size();
    const size_t scanned = has_key ? scores.taken[i] / size : 0;
    uint32_t cluster = has_key ? scores.scanned[scanned] : 0;
    if (!has_key || (whole < scores.unscanned.size() && scores.unscanned[whole] < cluster)) {
      cluster = scores.unscanned[whole++];
      for (size_t place = 0; place < size; ++place) {
        chosen.places.push_back(static_cast<uint16_t>(place));
      }
    } else {
      for (; i < scores.taken.size() && scores.taken[i] < (scanned + 1) * size; ++i) {
        chosen.places.push_back(static_cast<uint16_t>(scores.taken[i] - scanned * size));
      }
    }
    chosen.clusters.push_back(cluster);
    chosen.begins.push_back(static_cast<uint32_t>(chosen.places.size()));
  }
}

void ClusterTable::ListKeys(const KeyChoice& choice, std::vector<uint32_t>& keys) const {
  const size_t size = cluster_keys();
  size_t i = 0;
  for (const Segment& segment : segments_) {
    const size_t end = segment.first_cluster + segment.clusters.clusters();
    for (; i < choice.clusters.size() && choice.clusters[i] < end; ++i) {
      const size_t ahead = i + kPrefetched;
      if (ahead < choice.clusters.size() && choice.clusters[ahead] < end) {
        PrefetchBytes(
            segment.clusters.members(choice.clusters[ahead] - segment.first_cluster).data(),
            size * sizeof(uint16_t));
      }
      const auto offsets = segment.clusters.members(choice.clusters[i] - segment.first_cluster);
      for (size_t at = choice.begins[i]; at < choice.begins[i + 1]; ++at) {
        keys.push_back(static_cast<uint32_t>(segment.first_key + offsets[choice.places[at]]));
      }
    }
  }
}

void ClusterTable::ChooseUnscanned(ClusterScores& scores, size_t count, float least) const {
  scores.unscanned.clear();
  if (count == 0) return;
  scores.rest = scores.worth;
  for (const uint32_t cluster : scores.scanned) scores.rest[cluster] = -1;
  for (uint32_t c = 0; c < clusters(); ++c) {
    if (scores.rest[c] >= least) scores.unscanned.push_back(c);
  }
  if (scores.unscanned.size() <= count) return;
  const auto middle = scores.unscanned.begin() + static_cast<ptrdiff_t>(count);
  std::nth_element(
      scores.unscanned.begin(), middle, scores.unscanned.end(), [&](uint32_t a, uint32_t b) {
        return scores.rest[a] != scores.rest[b] ? scores.rest[a] > scores.rest[b] : a < b;
      });
  scores.unscanned.resize(count);
  std::sort(scores.unscanned.begin(), scores.unscanned.end());
}

}  // namespace terrace
