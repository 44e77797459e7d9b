#include "index/balanced_assignment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "index/nearest_centroid.h"

namespace terrace {
namespace {

// Points of which all sums with centroids are held at once.
constexpr size_t kPointsAtOnce = 96;

struct Held {
  float distance;
  uint32_t point;

  bool operator<(const Held& other) const {
    return distance != other.distance ? distance < other.distance : point < other.point;
  }
};

// A centroid on the list of a point.
struct Choice {
  float distance;  // half of its square
  uint32_t centroid;

  bool operator<(const Choice& other) const {
    return distance != other.distance ? distance < other.distance : centroid < other.centroid;
  }
};

// Half the squared distance of a point that is |point|^2 / 2 = `half_square` from zero.
float Distance(float half_square, float score) {
  const float distance = half_square - score;
  return std::isfinite(distance) ? distance : std::numeric_limits<float>::max();
}

class Assignment {
 public:
  Assignment(const float* points, size_t count, const float* centroids, const float* biases,
             size_t centroid_count, size_t dimensions)
      : points_(points),
        count_(count),
        centroids_(centroids),
        biases_(biases),
        centroid_count_(centroid_count),
        dimensions_(dimensions),
        listed_(std::min(kAskedCentroids, centroid_count)),
        lists_(count * listed_),
        held_(centroid_count) {
    for (std::vector<Held>& held : held_) held.reserve(count / centroid_count + 1);
  }

  void Run(uint32_t* labels) {
    MakeLists();
    std::vector<uint32_t> left;  // of points that every centroid on their list gave up
    for (size_t i = 0; i < count_; ++i) Propose(static_cast<uint32_t>(i), left);
    std::sort(left.begin(), left.end());
    TakeRoom(left);
    for (size_t c = 0; c < centroid_count_; ++c) {
      for (const Held& held : held_[c]) labels[held.point] = static_cast<uint32_t>(c);
    }
  }

 private:
  size_t capacity() const { return count_ / centroid_count_; }

  // Calls use(point, choices) with all centroids for each of the points.
  template <typename Use>
  void ForEach(const float* points, size_t count, Use use) const {
    std::vector<float> scores(std::min(count, kPointsAtOnce) * centroid_count_);
    std::vector<Choice> choices(centroid_count_);
    for (size_t first = 0; first < count; first += kPointsAtOnce) {
      const size_t some = std::min(kPointsAtOnce, count - first);
      ScoreCentroids(points + first * dimensions_, some, centroids_, biases_, centroid_count_,
                     dimensions_, scores.data());
      for (size_t i = 0; i < some; ++i) {
        const float* const point = points + (first + i) * dimensions_;
        const float half_square =
            0.5f * std::inner_product(point, point + dimensions_, point, 0.0f);
        for (size_t c = 0; c < centroid_count_; ++c) {
          choices[c] = {Distance(half_square, scores[i * centroid_count_ + c]),
                        static_cast<uint32_t>(c)};
        }
        use(first + i, choices);
      }
    }
  }

  void MakeLists() {
    ForEach(points_, count_, [&](size_t point, std::vector<Choice>& choices) {
      const auto end = choices.begin() + static_cast<ptrdiff_t>(listed_);
      std::nth_element(choices.begin(), end - 1, choices.end());
      std::sort(choices.begin(), end);
      std::copy(choices.begin(), end, lists_.begin() + static_cast<ptrdiff_t>(point * listed_));
    });
    asked_.assign(count_, 0);
  }

  void Propose(uint32_t point, std::vector<uint32_t>& left) {
    while (asked_[point] < listed_) {
      const Choice& choice = lists_[point * listed_ + asked_[point]++];
      std::vector<Held>& held = held_[choice.centroid];
      held.push_back({choice.distance, point});
      std::push_heap(held.begin(), held.end());
      if (held.size() <= capacity()) return;
      std::pop_heap(held.begin(), held.end());
      point = held.back().point;
      held.pop_back();
    }
    left.push_back(point);
  }

  void TakeRoom(const std::vector<uint32_t>& left) {
    std::vector<float> points(left.size() * dimensions_);
    for (size_t i = 0; i < left.size(); ++i) {
      std::copy_n(points_ + left[i] * dimensions_, dimensions_, points.data() + i * dimensions_);
    }
    ForEach(points.data(), left.size(), [&](size_t i, const std::vector<Choice>& choices) {
      Choice best{std::numeric_limits<float>::infinity(), 0};
      for (const Choice& choice : choices) {
        if (choice < best && held_[choice.centroid].size() < capacity()) best = choice;
      }
      held_[best.centroid].push_back({best.distance, left[i]});
    });
  }

  const float* const points_;
  const size_t count_;
  const float* const centroids_;
  const float* const biases_;
  const size_t centroid_count_;
  const size_t dimensions_;
  const size_t listed_;
  std::vector<Choice> lists_;            // [count, listed], nearest first
  std::vector<uint32_t> asked_;          // [count], of the list
  std::vector<std::vector<Held>> held_;  // [centroids], heaps with the farthest in front
};

}  // namespace

void AssignBalanced(const float* points, size_t count, const float* centroids, const float* biases,
                    size_t centroid_count, size_t dimensions, uint32_t* labels) {
  Assignment(points, count, centroids, biases, centroid_count, dimensions).Run(labels);
}

}  // namespace terrace
