#ifndef TERRACE_TOOLS_HEAD_PROFILE_RUN_H_
#define TERRACE_TOOLS_HEAD_PROFILE_RUN_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/head_profile.h"
#include "tools/runtime_flags.h"

namespace terrace {

// What `terrace eval --profile-heads` measures.
struct HeadProfileSetup {
  std::string model;            // its folder
  std::string text;             // the file to hide pass keys in
  std::vector<size_t> lengths;  // of the texts, in tokens
  size_t texts = 0;             // of each length, at least 1
  uint64_t seed = 1;
  size_t sink_tokens = 0;
  size_t window_tokens = 0;  // at least 1
  RuntimeFlags runtime;      // of which the --device matters alone
};

// Runs the model with exact attention over texts with one pass key each, which stands before the
// window, then over the question for it and its digits, and measures which share of attention those
// positions that predict the digits give to what is neither sink nor window. The texts differ from
// those that `terrace eval --needles` asks about with the same seed.
//
// Pass keys, because in ordinary text few heads look far back and those that could are not told
// from the others (DuoAttention, arXiv 2410.10819, section 2.2); attention, because it needs no
// training.
//
// kInvalidArgument naming the flag when a length leaves no room for a key before the window;
// kCancelled once `stop` is set; otherwise errors are those of the model and the text.
absl::StatusOr<HeadProfile> RunHeadProfile(const HeadProfileSetup& setup,
                                           const std::atomic<bool>& stop);

}  // namespace terrace

#endif  // TERRACE_TOOLS_HEAD_PROFILE_RUN_H_
