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
  const size_t count = clusters();
  // Even less than a cluster buys one.
  const size_t most = std::max<size_t>(budget.keys / cluster_keys(), 1);
  WorthCut(scores.worth, most, scores.bin).Collect(scores.worth, chosen);
  if (budget.min_share > 0) {
    std::erase_if(chosen, [&](uint32_t c) {
      for (size_t row = 0; row < scores.rows; ++row) {
        if (double{scores.masses[row * count + c]} >=
            double{budget.min_share} * scores.totals[row]) {
          return false;
        }
      }
      return true;
    });
  }
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
  chosen.clusters.clear();
  chosen.begins.assign(1, 0);
  chosen.places.clear();
  const auto close = [&](uint32_t cluster) {
    chosen.clusters.push_back(cluster);
    chosen.begins.push_back(static_cast<uint32_t>(chosen.places.size()));
  };
  if (budget.keys >= known + size) {
    // All keys that are known, and between them clusters that are not.
    ChooseUnscanned(scores, (budget.keys - known) / size);
    size_t scanned = 0;
    size_t whole = 0;
    while (scanned < scores.scanned.size() || whole < scores.taken.size()) {
      const bool is_scanned =
          whole == scores.taken.size() ||
          (scanned < scores.scanned.size() && scores.scanned[scanned] < scores.taken[whole]);
      for (size_t place = 0; place < size; ++place) {
        chosen.places.push_back(static_cast<uint16_t>(place));
      }
      close(is_scanned ? scores.scanned[scanned++] : scores.taken[whole++]);
    }
  } else {
    for (size_t i = 0; i < scores.taken.size();) {
      const size_t scanned = scores.taken[i] / size;
      const size_t end = (scanned + 1) * size;
      for (; i < scores.taken.size() && scores.taken[i] < end; ++i) {
        chosen.places.push_back(static_cast<uint16_t>(scores.taken[i] - scanned * size));
      }
      close(scores.scanned[scanned]);
    }
  }
  if (budget.min_share > 0) DropSmall(scores, budget.min_share, chosen);
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

void ClusterTable::ChooseUnscanned(ClusterScores& scores, size_t count) const {
  scores.rest.clear();
  scores.unscanned.clear();
  auto scanned = scores.scanned.begin();
  for (uint32_t c = 0; c < clusters(); ++c) {
    if (scanned != scores.scanned.end() && *scanned == c) {
      ++scanned;
      continue;
    }
    scores.unscanned.push_back(c);
    scores.rest.push_back(scores.worth[c]);
  }
  WorthCut(scores.rest, count, scores.bin).Collect(scores.rest, scores.taken);
  for (uint32_t& taken : scores.taken) taken = scores.unscanned[taken];
}

void ClusterTable::DropSmall(const ClusterScores& scores, float min_share,
                             KeyChoice& chosen) const {
  const size_t size = cluster_keys();
  const size_t known = scores.scanned.size() * size;
  size_t kept_clusters = 0;
  size_t kept = 0;
  size_t begin = 0;
  for (size_t i = 0; i < chosen.clusters.size(); ++i) {
    const uint32_t cluster = chosen.clusters[i];
    const auto at = std::lower_bound(scores.scanned.begin(), scores.scanned.end(), cluster);
    const bool is_known = at != scores.scanned.end() && *at == cluster;
    const size_t first = static_cast<size_t>(at - scores.scanned.begin()) * size;
    const size_t end = chosen.begins[i + 1];
    for (size_t place = begin; place < end; ++place) {
      bool large = false;
      for (size_t row = 0; row < scores.rows; ++row) {
        const double mass =
            is_known
                ? double{scores.key_masses[row * known + first + chosen.places[place]]}
                : double{scores.masses[row * clusters() + cluster]} / static_cast<double>(size);
        large |= mass >= double{min_share} * scores.totals[row];
      }
      if (large) chosen.places[kept++] = chosen.places[place];
    }
    begin = end;
    if (kept == chosen.begins[kept_clusters]) continue;
    chosen.clusters[kept_clusters++] = cluster;
    chosen.begins[kept_clusters] = static_cast<uint32_t>(kept);
  }
  chosen.clusters.resize(kept_clusters);
  chosen.begins.resize(kept_clusters + 1);
  chosen.places.resize(kept);
}

}  // namespace terrace
