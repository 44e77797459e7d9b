#ifndef TERRACE_INDEX_NEAREST_CENTROID_H_
#define TERRACE_INDEX_NEAREST_CENTROID_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// For each point the centroid with the largest point . centroid + bias, the first of those that
// tie: with a bias of -|centroid|^2 / 2 that is the nearest one. By SIMD chosen at run time; sums
// are fp32, in the same order on every instruction set. Thread-safe.
//
// `points` is [count, dimensions], `centroids` is [centroid_count, dimensions] with at least one
// row, `biases` is [centroid_count], `labels` is [count]. Where sums are not finite, some centroid
// is named.
void FindNearestCentroids(const float* points, size_t count, const float* centroids,
                          const float* biases, size_t centroid_count, size_t dimensions,
                          uint32_t* labels);
// Writes all of those sums: `scores` is [count, centroid_count].
void ScoreCentroids(const float* points, size_t count, const float* centroids, const float* biases,
                    size_t centroid_count, size_t dimensions, float* scores);

}  // namespace terrace

#endif  // TERRACE_INDEX_NEAREST_CENTROID_H_
