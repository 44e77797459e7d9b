#include <algorithm>
#include <limits>

#include "index/cluster_kernels.h"
#include "index/cluster_table.h"
#include "index/largest_worth.h"

// How a ClusterTable chooses what is read.
namespace terrace {
namespace {

constexpr double kNeverEnough = std::numeric_limits<double>::infinity();

}  // namespace

void ClusterTable::Rank(ClusterScores& scores, const ClusterBudget& budget,
                        std::vector<uint32_t>& chosen) const {
  const size_t count = clusters();
  SetWorth(scores);
  chosen.clear();
  // Even less than a cluster buys one.
  const size_t most = std::max<size_t>(budget.keys / cluster_keys(), 1);
  WorthCut cut(scores.worth, most, kNeverEnough, scores.bin);
  for (size_t c = 0; c < count; ++c) {
    if (cut.Takes(scores.worth[c])) chosen.push_back(static_cast<uint32_t>(c));
  }
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
  SetWorth(scores);
  scores.key_worth.assign(known, 0.0f);
  for (size_t row = 0; row < scores.rows; ++row) {
    const auto per_mass = static_cast<float>(1 / scores.totals[row]);
    AddShares(scores.key_masses.data() + row * known, known, per_mass, scores.key_worth.data());
  }
  for (float& worth : scores.key_worth) worth = worth > 0 ? worth : 0;
  WorthCut keys(scores.key_worth, budget.keys, kNeverEnough, scores.bin);
  // Behind the keys that are known come clusters that are not, which have a worth that is marked.
  const bool more = budget.keys >= known + size;
  if (more) {
    for (const uint32_t c : scores.scanned) scores.worth[c] = -1;
    scores.rest.clear();
    for (const float worth : scores.worth) {
      if (worth >= 0) scores.rest.push_back(worth);
    }
  }
  WorthCut whole(more ? absl::MakeConstSpan(scores.rest) : absl::Span<const float>(),
                 more ? (budget.keys - known) / size : 0, kNeverEnough, scores.bin);

  chosen.clusters.clear();
  chosen.begins.assign(1, 0);
  chosen.places.clear();
  const auto close = [&](uint32_t cluster) {
    if (chosen.places.size() == chosen.begins.back()) return;
    chosen.clusters.push_back(cluster);
    chosen.begins.push_back(static_cast<uint32_t>(chosen.places.size()));
  };
  const auto take_known = [&](size_t i) {
    // No key has a larger share than its cluster, up to rounding.
    constexpr float kAboveRounding = 1.001f;
    if (!more && keys.IsAbove(scores.worth[scores.scanned[i]] * kAboveRounding)) return;
    for (size_t place = 0; place < size; ++place) {
      if (keys.Takes(scores.key_worth[i * size + place])) {
        chosen.places.push_back(static_cast<uint16_t>(place));
      }
    }
    close(scores.scanned[i]);
  };
  size_t i = 0;
  if (more) {
    for (size_t c = 0; c < clusters(); ++c) {
      if (scores.worth[c] < 0) {
        take_known(i++);
      } else if (whole.Takes(scores.worth[c])) {
        for (size_t place = 0; place < size; ++place) {
          chosen.places.push_back(static_cast<uint16_t>(place));
        }
        close(static_cast<uint32_t>(c));
      }
    }
  }
  for (; i < scores.scanned.size(); ++i) take_known(i);
  if (budget.min_share > 0) DropSmall(scores, budget.min_share, chosen);
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
