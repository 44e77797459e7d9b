#include "runtime/weight_pager_options.h"
#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

constexpr size_t kMaxDepth = 4096;
constexpr size_t kMaxRereads = 100;

template <typename T>
absl::Status CheckOption(const char* name, T value, T min, T max) {
  if (value >= min && value <= max) return absl::OkStatus();  // false for NaN
  return absl::InvalidArgumentError(
      absl::StrCat("weights: ", name, ": ", value, " is not from ", min, " to ", max));
}

}  // namespace

absl::Status WeightPagerOptions::Validate() const {
  absl::Status status = CheckOption("pinned_share", pinned_share, 0.0, 1.0);
  if (status.ok()) status = CheckOption("max_overread", max_overread, 0.0, 16.0);
  if (status.ok()) status = CheckOption<size_t>("depth", depth, 1, kMaxDepth);
  if (status.ok()) status = CheckOption<size_t>("prefetch_depth", prefetch_depth, 1, kMaxDepth);
  if (status.ok()) status = CheckOption<size_t>("rereads", rereads, 0, kMaxRereads);
  return status;
}

}  // namespace terrace
