#ifndef TERRACE_BENCH_MEASURE_H_
#define TERRACE_BENCH_MEASURE_H_

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace {

// What the programs that compare two ways of doing the same work share.

// The value, or the end of the program with the message of the status.
template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", std::string(value.status().message()).c_str());
  std::exit(1);
}
inline void OrDie(const absl::Status& status) {
  if (!status.ok()) OrDie(absl::StatusOr<int>(status));
}

// User and system time of the process so far.
double CpuSeconds();

// The value that `share` of the others are below; `values` is not empty.
double Quantile(std::vector<double> values, double share);

// Runs `a` and `b` alternately, `pairs` times each: A B, B A, A B, ... A machine that speeds up or
// slows down favours neither.
void RunPairs(size_t pairs, absl::FunctionRef<void()> a, absl::FunctionRef<void()> b);

// "0.981 median, 0.955 to 1.012 (quartiles)" of a[i] / b[i].
std::string RatioText(const std::vector<double>& a, const std::vector<double>& b);

// Kernel and its version.
std::string SystemText();

}  // namespace terrace

#endif  // TERRACE_BENCH_MEASURE_H_
