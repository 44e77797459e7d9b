#ifndef TERRACE_TOOLS_STREAMING_HEADS_H_
#define TERRACE_TOOLS_STREAMING_HEADS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/head_profile.h"
#include "tools/runtime_flags.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// Flags with which commands have heads stream that need nothing else.
struct StreamingFlags {
  std::string profile;         // the file; empty for none
  std::vector<double> shares;  // of all heads, from 0 to 1

  // kInvalidArgument naming the flag that is missing beside the other.
  absl::Status Check() const;
  // Errors of terrace::ReadHeadProfile, naming the flag.
  absl::StatusOr<HeadProfile> ReadProfile() const;
};

enum class StreamingShares : uint8_t { kOne, kSeveral };

// `flags` outlives parsing.
void AddStreamingFlags(CLI::App& command, StreamingFlags& flags, StreamingShares shares);

// Whether heads of this policy could stream or not: not those of plain, which has no tiers, nor of
// streaming, all of which do.
bool MayHaveStreamingHeads(const AttentionPolicy& policy);

// `policy` with `share` of its heads streaming; itself for a share of 0. kInvalidArgument naming
// the flag for a policy whose heads cannot stream by themselves.
absl::StatusOr<AttentionPolicy> WithStreamingHeads(const AttentionPolicy& policy,
                                                   const HeadProfile& profile, double share);

// kInvalidArgument naming the flag, for a profile of another shape than the model in folder `model`
// has, and for one that was measured with more sinks or a larger window: what heads need with less
// it does not say. A model that cannot be read is left to whoever runs it.
absl::Status CheckProfileFits(const HeadProfile& profile, const std::string& model,
                              const RuntimeFlags& flags);

}  // namespace terrace

#endif  // TERRACE_TOOLS_STREAMING_HEADS_H_
