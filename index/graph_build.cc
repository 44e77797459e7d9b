#include "index/graph_build.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "index/query_metric.h"

namespace terrace {
namespace {

constexpr size_t kJobKeys = 256;  // keys that a thread takes at a time
// Of the queries that found a key, those that rank it best tell the most.
constexpr size_t kMostQueriesOfKey = 16;
constexpr size_t kMostCandidates = 256;  // that are pruned; the nearest
constexpr size_t kBatches = 4;           // of Connect: a batch finds what the ones before linked
constexpr size_t kNoParent = std::numeric_limits<uint32_t>::max();

}  // namespace

GraphBuilder::GraphBuilder(const float* points, size_t dimensions, size_t width, KeyGraph& graph,
                           ComputePool& pool)
    : points_(points),
      dimensions_(dimensions),
      width_(width),
      graph_(graph),
      pool_(pool),
      scratch_(pool.threads()) {}

void GraphBuilder::Choose(uint32_t key, Scratch& scratch) const {
  std::vector<uint32_t>& keys = scratch.keys;
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  keys.erase(std::remove(keys.begin(), keys.end(), key), keys.end());
  scratch.distances.resize(keys.size());
  SquaredDistances(point(key), points_, dimensions_, keys, scratch.distances.data());
  std::vector<Candidate>& candidates = scratch.candidates;
  candidates.clear();
  for (size_t i = 0; i < keys.size(); ++i) {
    // Differences of huge keys may overflow; NaN has no place in an order.
    const float distance = scratch.distances[i];
    candidates.push_back(
        {std::isnan(distance) ? std::numeric_limits<float>::infinity() : distance, keys[i]});
  }
  const size_t count = std::min(candidates.size(), kMostCandidates);
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(count),
                    candidates.end(), [](const Candidate& a, const Candidate& b) {
                      return a.distance != b.distance ? a.distance < b.distance : a.key < b.key;
                    });

  // The occlusion rule: a candidate that is nearer to a chosen one than to the key is reached
  // through that one. What room is left goes to the nearest of those.
  scratch.chosen.clear();
  scratch.rest.clear();
  scratch.distances.resize(std::max(scratch.distances.size(), graph_.degree()));
  for (size_t i = 0; i < count && scratch.chosen.size() < graph_.degree(); ++i) {
    const Candidate& candidate = candidates[i];
    SquaredDistances(point(candidate.key), points_, dimensions_, scratch.chosen,
                     scratch.distances.data());
    const auto end = scratch.distances.begin() + static_cast<ptrdiff_t>(scratch.chosen.size());
    const bool occluded = std::any_of(scratch.distances.begin(), end, [&](float distance) {
      return distance < candidate.distance;
    });
    (occluded ? scratch.rest : scratch.chosen).push_back(candidate.key);
  }
  const size_t room = graph_.degree() - scratch.chosen.size();
  const auto fill = static_cast<ptrdiff_t>(std::min(room, scratch.rest.size()));
  scratch.chosen.insert(scratch.chosen.end(), scratch.rest.begin(), scratch.rest.begin() + fill);
}

void GraphBuilder::GatherFound(absl::Span<const uint32_t> found, size_t k,
                               absl::Span<const uint32_t> places, Scratch& scratch) const {
  // Places, sorted by the rank that the key has in them and then by query.
  std::vector<uint32_t>& best = scratch.rest;
  best.assign(places.begin(), places.end());
  const size_t count = std::min(best.size(), kMostQueriesOfKey);
  std::partial_sort(best.begin(), best.begin() + static_cast<ptrdiff_t>(count), best.end(),
                    [k](uint32_t a, uint32_t b) { return a % k != b % k ? a % k < b % k : a < b; });
  scratch.keys.clear();
  for (size_t i = 0; i < count; ++i) {
    const auto list = found.subspan(best[i] / k * k, k);
    scratch.keys.insert(scratch.keys.end(), list.begin(), list.end());
  }
}

void GraphBuilder::Project(absl::Span<const uint32_t> found, size_t k) {
  // places[starts[key]...starts[key + 1]]: where in `found` the key is.
  std::vector<uint32_t> starts(graph_.size() + 1, 0);
  for (const uint32_t key : found) ++starts[key + 1];
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  std::vector<uint32_t> places(found.size());
  std::vector<uint32_t> next(starts.begin(), starts.end() - 1);
  for (size_t place = 0; place < found.size(); ++place) {
    places[next[found[place]]++] = static_cast<uint32_t>(place);
  }
  std::vector<uint32_t> pivots;
  for (uint32_t key = 0; key < graph_.size(); ++key) {
    if (starts[key] != starts[key + 1]) pivots.push_back(key);
  }
  pool_.ForEach((pivots.size() + kJobKeys - 1) / kJobKeys, [&](size_t job, size_t worker) {
    Scratch& scratch = scratch_[worker];
    const size_t end = std::min(pivots.size(), (job + 1) * kJobKeys);
    for (size_t i = job * kJobKeys; i < end; ++i) {
      const uint32_t key = pivots[i];
      const size_t count = starts[key + 1] - starts[key];
      GatherFound(found, k, absl::MakeConstSpan(places).subspan(starts[key], count), scratch);
      Choose(key, scratch);
      graph_.Set(key, scratch.chosen);
    }
  });
  LinkBack(pivots);
}

void GraphBuilder::LinkBack(absl::Span<const uint32_t> keys) {
  std::vector<Link> links;
  for (const uint32_t key : keys) {
    for (const uint32_t to : graph_.neighbours(key)) links.push_back({to, key});
  }
  std::sort(links.begin(), links.end(), [](const Link& a, const Link& b) {
    return a.to != b.to ? a.to < b.to : a.from < b.from;
  });
  std::vector<size_t> starts;
  for (size_t i = 0; i < links.size(); ++i) {
    if (i == 0 || links[i].to != links[i - 1].to) starts.push_back(i);
  }
  starts.push_back(links.size());
  const size_t targets = starts.size() - 1;
  pool_.ForEach((targets + kJobKeys - 1) / kJobKeys, [&](size_t job, size_t worker) {
    Scratch& scratch = scratch_[worker];
    const size_t end = std::min(targets, (job + 1) * kJobKeys);
    for (size_t target = job * kJobKeys; target < end; ++target) {
      const uint32_t key = links[starts[target]].to;
      const auto neighbours = graph_.neighbours(key);
      scratch.keys.assign(neighbours.begin(), neighbours.end());
      for (size_t i = starts[target]; i < starts[target + 1]; ++i) {
        scratch.keys.push_back(links[i].from);
      }
      Choose(key, scratch);
      graph_.Set(key, scratch.chosen);
    }
  });
}

void GraphBuilder::SearchFor(uint32_t key, absl::Span<const uint32_t> entries,
                             Scratch& scratch) const {
  GraphBeam& beam = scratch.beam;
  beam.Start(width_, graph_.size());
  const auto score = [&](absl::Span<const uint32_t> keys) {
    scratch.distances.resize(std::max(scratch.distances.size(), keys.size()));
    SquaredDistances(point(key), points_, dimensions_, keys, scratch.distances.data());
    for (size_t i = 0; i < keys.size(); ++i) scratch.distances[i] = -scratch.distances[i];
    beam.Offer(keys, scratch.distances.data());
  };
  score(beam.Unseen(entries));
  score(beam.Unseen(graph_.neighbours(key)));
  absl::Span<const uint32_t> unseen;
  while (beam.Expand(graph_, unseen)) score(unseen);
}

void GraphBuilder::Connect(size_t first, size_t end, absl::Span<const uint32_t> entries) {
  const size_t batch = std::max<size_t>((end - first + kBatches - 1) / kBatches, 1);
  for (; first < end; first += batch) {
    const size_t count = std::min(batch, end - first);
    std::vector<uint32_t> keys(count);
    std::iota(keys.begin(), keys.end(), static_cast<uint32_t>(first));
    std::vector<uint32_t> chosen(count * graph_.degree());
    std::vector<size_t> chosen_counts(count);
    pool_.ForEach((count + kJobKeys - 1) / kJobKeys, [&](size_t job, size_t worker) {
      Scratch& scratch = scratch_[worker];
      const size_t job_end = std::min(count, (job + 1) * kJobKeys);
      for (size_t i = job * kJobKeys; i < job_end; ++i) {
        SearchFor(keys[i], entries, scratch);
        const auto neighbours = graph_.neighbours(keys[i]);
        scratch.keys.assign(neighbours.begin(), neighbours.end());
        for (const GraphBeam::Scored& met : scratch.beam.best()) scratch.keys.push_back(met.key);
        Choose(keys[i], scratch);
        chosen_counts[i] = scratch.chosen.size();
        std::copy(scratch.chosen.begin(), scratch.chosen.end(),
                  chosen.begin() + static_cast<ptrdiff_t>(i * graph_.degree()));
      }
    });
    for (size_t i = 0; i < count; ++i) {
      graph_.Set(keys[i],
                 absl::MakeConstSpan(chosen).subspan(i * graph_.degree(), chosen_counts[i]));
    }
    LinkBack(keys);
  }
}

void GraphBuilder::Reach(uint32_t root, absl::Span<const uint32_t> entries) {
  // A tree of links from the root. Its links stay; all others may be given up.
  std::vector<uint32_t> parents(graph_.size(), kNoParent);
  std::vector<uint32_t> reached = {root};
  parents[root] = root;
  size_t expanded = 0;
  const auto expand = [&] {
    for (; expanded < reached.size(); ++expanded) {
      for (const uint32_t to : graph_.neighbours(reached[expanded])) {
        if (parents[to] != kNoParent) continue;
        parents[to] = reached[expanded];
        reached.push_back(to);
      }
    }
  };
  // Takes the last link of `from`, which is the least useful, that is not in the tree.
  const auto adopt = [&](uint32_t from, uint32_t key) {
    const auto neighbours = graph_.neighbours(from);
    std::vector<uint32_t> links(neighbours.begin(), neighbours.end());
    if (links.size() == graph_.degree()) {
      const auto spare = std::find_if(links.rbegin(), links.rend(), [&](uint32_t to) {
        return parents[to] != from || to == root;
      });
      if (spare == links.rend()) return false;
      links.erase(std::next(spare).base());
    }
    links.push_back(key);
    graph_.Set(from, links);
    parents[key] = from;
    reached.push_back(key);
    return true;
  };
  expand();
  size_t fallback = 0;
  for (uint32_t key = 0; key < graph_.size(); ++key) {
    if (parents[key] != kNoParent) continue;
    SearchFor(key, entries, scratch_[0]);
    bool adopted = false;
    for (const GraphBeam::Scored& met : scratch_[0].beam.best()) {
      adopted = parents[met.key] != kNoParent && adopt(met.key, key);
      if (adopted) break;
    }
    // A tree has fewer links than keys, so some reached key has room. One without room never gets
    // it back.
    for (; !adopted; fallback += adopted ? 0 : 1) adopted = adopt(reached[fallback], key);
    expand();
  }
}

}  // namespace terrace
