#ifndef TERRACE_INDEX_BALANCED_ASSIGNMENT_H_
#define TERRACE_INDEX_BALANCED_ASSIGNMENT_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// Gives every centroid equally many points, near ones, by deferred acceptance (Gale and Shapley,
// College admissions and the stability of marriage, 1962): a point asks its nearest centroid, a
// centroid that has too many gives up the farthest, and that one asks its next nearest. So no point
// and centroid would both rather have each other than what they got, among the kAskedCentroids that
// are nearest to the point; points that all of these give up take the nearest centroid with room.
// Of equals, the one with the smaller number comes first. Thread-safe.
//
// `points` is [count, dimensions], `centroids` is [centroid_count, dimensions] with at least one
// row, which divides `count`; `biases` is [centroid_count], each -|centroid|^2 / 2; `labels` is
// [count]. Distances that are not finite count as the largest.
void AssignBalanced(const float* points, size_t count, const float* centroids, const float* biases,
                    size_t centroid_count, size_t dimensions, uint32_t* labels);

inline constexpr size_t kAskedCentroids = 24;

}  // namespace terrace

#endif  // TERRACE_INDEX_BALANCED_ASSIGNMENT_H_
