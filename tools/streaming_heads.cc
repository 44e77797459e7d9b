#include "tools/streaming_heads.h"

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "tools/command.h"
#include "tools/engine/context_attention.h"
#include "tools/engine/model_config.h"

namespace terrace {

absl::Status StreamingFlags::Check() const {
  if (profile.empty() && !shares.empty()) {
    return absl::InvalidArgumentError(
        "--head-profile: needed with --streaming-heads, to know which heads");
  }
  if (!profile.empty() && shares.empty()) {
    return absl::InvalidArgumentError(
        "--streaming-heads: needed with --head-profile, to know how many heads");
  }
  return absl::OkStatus();
}

absl::StatusOr<HeadProfile> StreamingFlags::ReadProfile() const {
  absl::StatusOr<HeadProfile> read = ReadHeadProfile(profile);
  if (read.ok()) return read;
  return absl::Status(read.status().code(),
                      absl::StrCat("--head-profile: ", read.status().message()));
}

void AddStreamingFlags(CLI::App& command, StreamingFlags& flags, StreamingShares shares) {
  command
      .add_option("--head-profile", flags.profile,
                  "How much each KV head needs what is beyond sinks and window, as terrace eval "
                  "--profile-heads measured it on this model")
      ->type_name("FILE");
  const bool several = shares == StreamingShares::kSeveral;
  CLI::Option* const option =
      command
          .add_option("--streaming-heads", flags.shares,
                      absl::StrCat("Share of the KV heads, those that need least by "
                                   "--head-profile, that attend to sinks and window alone",
                                   several ? "; with several, separated by commas, each policy "
                                             "is measured with each"
                                           : ""))
          ->check(CLI::Validator(CheckNotNan, ""))
          ->check(CLI::Range(0.0, 1.0));
  if (several) {
    option->delimiter(',')->type_name("LIST");
  } else {
    option->expected(1);
  }
}

bool MayHaveStreamingHeads(const AttentionPolicy& policy) {
  return !policy.is_plain() && policy.lookup->kind != LookupKind::kStreaming;
}

absl::StatusOr<AttentionPolicy> WithStreamingHeads(const AttentionPolicy& policy,
                                                   const HeadProfile& profile, double share) {
  if (share == 0) return policy;
  if (!MayHaveStreamingHeads(policy)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--streaming-heads: --policy ", policy.name,
                     policy.is_plain() ? " has no tiers" : " has all heads stream"));
  }
  if (policy.lookup->pooled) {
    return absl::InvalidArgumentError(
        absl::StrCat("--streaming-heads: with --policy ", policy.name,
                     " the heads of a layer share their blocks, so none streams by itself"));
  }
  AttentionPolicy with = policy;
  with.streaming = {.profile = profile, .share = share};
  return with;
}

absl::Status CheckProfileFits(const HeadProfile& profile, const std::string& model,
                              const RuntimeFlags& flags) {
  if (flags.sinks < profile.sink_tokens || flags.window < profile.window_tokens) {
    const bool sinks = flags.sinks < profile.sink_tokens;
    return absl::InvalidArgumentError(
        absl::StrCat(sinks ? "--sinks: " : "--window: ", sinks ? flags.sinks : flags.window,
                     " is less than the ", sinks ? profile.sink_tokens : profile.window_tokens,
                     " that --head-profile was measured with"));
  }
  const absl::StatusOr<ModelConfig> config = ReadModelConfig(absl::StrCat(model, "/config.json"));
  if (!config.ok()) return absl::OkStatus();
  const absl::StatusOr<ModelShape> shape = ShapeOf(*config, KvDtype::kFloat16, LookupKind::kFull);
  if (!shape.ok()) return absl::OkStatus();
  const absl::Status fits = profile.CheckFits(*shape);
  if (fits.ok()) return fits;
  return absl::Status(fits.code(), absl::StrCat("--head-profile: ", fits.message()));
}

}  // namespace terrace
