#include "tools/eval_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "tools/engine/needle.h"
#include "tools/eval_report.h"
#include "tools/eval_run.h"
#include "tools/head_profile_report.h"
#include "tools/head_profile_run.h"
#include "tools/needle_plot.h"
#include "tools/output_file.h"
#include "tools/stop_signal.h"
#include "tools/streaming_heads.h"
#include "tools/weight_flags.h"

namespace terrace {
namespace {

constexpr size_t kMaxLength = size_t{1} << 20;

struct EvalArguments {
  EvalSetup setup;
  std::string policies = "full";
  std::vector<size_t> lengths = {2048};
  bool perplexity = false;
  PerplexityOptions windows;
  StreamingFlags streaming;
  WeightFlags weights;
  std::string profile_heads;
  size_t profile_texts = 20;
  std::string json;
  std::string plot;
};

absl::Status TakePolicies(EvalArguments& arguments) {
  for (const absl::string_view name : absl::StrSplit(arguments.policies, ',')) {
    auto policy = ParseAttentionPolicy(name, arguments.setup.runtime);
    if (!policy.ok()) return policy.status();
    arguments.setup.policies.push_back(*std::move(policy));
  }
  return absl::OkStatus();
}

absl::Status CheckShare(const EvalSetup& setup) {
  if (!setup.share.has_value()) return absl::OkStatus();
  if (setup.runtime.dir.empty()) {
    return absl::InvalidArgumentError("--dir: needed with --share, for the rest of the KV");
  }
  if (setup.runtime.hbm.value_or(0) > 0) {
    return absl::InvalidArgumentError("--hbm: --share sizes the DRAM tier and has no HBM");
  }
  return absl::OkStatus();
}

absl::Status CheckNeedles(const EvalArguments& arguments) {
  const EvalSetup::Needles& needles = arguments.setup.needles;
  if (needles.questions == 0) {
    if (!arguments.perplexity) {
      return absl::InvalidArgumentError(
          "nothing to do without --perplexity and --needles, or --profile-heads");
    }
    if (!arguments.plot.empty()) {
      return absl::InvalidArgumentError("--plot: draws needles, so it goes with --needles");
    }
    return absl::OkStatus();
  }
  if (needles.keys > needles.depths) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--keys: ", needles.keys, " in one text need as many --depths, not ", needles.depths));
  }
  if (needles.questions % needles.keys != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--needles: ", needles.questions,
                                                   " is not a multiple of the ", needles.keys,
                                                   " --keys that every text is asked about"));
  }
  return absl::OkStatus();
}

absl::Status TakeWeights(EvalArguments& arguments) {
  if (absl::Status status = arguments.weights.Check(Predictors::kSeveral); !status.ok()) {
    return status;
  }
  if (!arguments.weights.given()) return absl::OkStatus();
  if (!arguments.perplexity) {
    return absl::InvalidArgumentError("--weights: goes with --perplexity");
  }
  if (!arguments.setup.policies[0].is_plain() && arguments.setup.perplexity->step_tokens != 1) {
    return absl::InvalidArgumentError(
        "--weights: paged weights run token by token, which some policies depend on: with a "
        "--policy other than plain give --perplexity-step 1");
  }
  arguments.setup.weights = arguments.weights.Options(arguments.setup.model);
  return absl::OkStatus();
}

absl::Status CompleteSetup(EvalArguments& arguments) {
  if (absl::Status status = TakePolicies(arguments); !status.ok()) return status;
  if (absl::Status status = arguments.setup.runtime.Check(); !status.ok()) return status;
  if (absl::Status status = arguments.streaming.Check(); !status.ok()) return status;
  if (absl::Status status = CheckShare(arguments.setup); !status.ok()) return status;
  if (absl::Status status = CheckNeedles(arguments); !status.ok()) return status;
  if (absl::Status status = TakeWeights(arguments); !status.ok()) return status;
  arguments.setup.needles.lengths = arguments.lengths;
  if (arguments.perplexity) arguments.setup.perplexity = arguments.windows;
  return absl::OkStatus();
}

ExitCode Complain(const absl::Status& status, ExitCode code = ExitCode::kFailure) {
  std::fprintf(stderr, "terrace eval: %s\n", std::string(status.message()).c_str());
  return code;
}

// Every policy with each share of its heads streaming. A policy whose heads cannot is measured
// once, as it is.
absl::Status AddStreamingHeads(const HeadProfile& profile, EvalArguments& arguments) {
  EvalSetup& setup = arguments.setup;
  absl::Status status = CheckProfileFits(profile, setup.model, setup.runtime);
  if (!status.ok()) return status;
  std::vector<AttentionPolicy> policies;
  for (const AttentionPolicy& policy : setup.policies) {
    if (!MayHaveStreamingHeads(policy)) {
      policies.push_back(policy);
      continue;
    }
    for (const double share : arguments.streaming.shares) {
      auto with = WithStreamingHeads(policy, profile, share);
      if (!with.ok()) return with.status();
      policies.push_back(*std::move(with));
    }
  }
  setup.policies = std::move(policies);
  return absl::OkStatus();
}

ExitCode ProfileHeads(const EvalArguments& arguments) {
  OutputFile file("--profile-heads", arguments.profile_heads,
                  {arguments.setup.text, arguments.setup.model + "/config.json",
                   arguments.setup.model + "/model.safetensors"});
  if (!file.status().ok()) return Complain(file.status());
  const absl::StatusOr<HeadProfile> profile =
      RunHeadProfile({.model = arguments.setup.model,
                      .text = arguments.setup.text,
                      .lengths = arguments.lengths,
                      .texts = arguments.profile_texts,
                      .seed = arguments.setup.needles.seed,
                      .sink_tokens = arguments.setup.runtime.sinks,
                      .window_tokens = arguments.setup.runtime.window,
                      .runtime = arguments.setup.runtime},
                     StopOnSignals());
  if (!profile.ok()) return Complain(profile.status());
  for (const absl::Status& status :
       {PrintText(HeadProfileTable(*profile)), file.Write(HeadProfileText(*profile))}) {
    if (!status.ok()) return Complain(status);
  }
  return ExitCode::kSuccess;
}

ExitCode RunCommand(EvalArguments& arguments) {
  if (!arguments.profile_heads.empty()) return ProfileHeads(arguments);
  absl::Status usage = CompleteSetup(arguments);
  if (!usage.ok()) return Complain(usage, ExitCode::kBadUsage);
  if (!arguments.streaming.profile.empty()) {
    const absl::StatusOr<HeadProfile> profile = arguments.streaming.ReadProfile();
    if (!profile.ok()) return Complain(profile.status());
    usage = AddStreamingHeads(*profile, arguments);
    if (!usage.ok()) return Complain(usage, ExitCode::kBadUsage);
  }
  OutputFile json("--json", arguments.json);
  if (!json.status().ok()) return Complain(json.status());
  OutputFile plot("--plot", arguments.plot);
  if (!plot.status().ok()) return Complain(plot.status());
  const absl::StatusOr<EvalReport> report = RunEval(arguments.setup, StopOnSignals());
  if (!report.ok()) return Complain(report.status());
  for (const absl::Status& status :
       {PrintText(EvalText(*report)), json.Write(JsonText(EvalJson(*report))),
        plot.Write(NeedlePlot(*report))}) {
    if (!status.ok()) return Complain(status);
  }
  uint64_t lost_blocks = 0;
  for (const PolicyResult& result : report->policies) lost_blocks += result.Lookups().lost_blocks;
  if (lost_blocks == 0) return ExitCode::kSuccess;
  return Complain(absl::DataLossError(absl::StrCat(
      lost_blocks, " blocks were lost, so the figures are not those of the policies")));
}

void AddPerplexityFlags(CLI::App& command, EvalArguments& arguments) {
  const CLI::Validator is_unsigned(CheckUnsigned, "");
  command.add_flag("--perplexity", arguments.perplexity,
                   "Measure how well each policy predicts the text, window by window");
  command
      .add_option("--perplexity-window", arguments.windows.window_tokens,
                  "Tokens of a window, its start token included")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{2}, kMaxLength));
  command
      .add_option("--perplexity-stride", arguments.windows.stride_bytes,
                  "Bytes from the beginning of a window to that of the next")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{1} << 40));
  command
      .add_option("--perplexity-windows", arguments.windows.max_windows,
                  "Windows at most; those that the text is too short for are left out")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{1} << 30));
  command
      .add_option("--perplexity-step", arguments.windows.step_tokens,
                  "Tokens run at once, which share their lookups; 1 predicts as decoding does, and "
                  "graph and cluster look up with 16 or fewer only")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, kChunkTokens));
}

void AddNeedleFlags(CLI::App& command, EvalArguments& arguments) {
  const CLI::Validator is_unsigned(CheckUnsigned, "");
  EvalSetup::Needles& needles = arguments.setup.needles;
  command
      .add_option("--needles", needles.questions,
                  "Ask so many questions at each length, for pass keys hidden in the text; 0 none")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{0}, size_t{1} << 20));
  command
      .add_option("--lengths", arguments.lengths,
                  "Lengths of the texts with their questions, in tokens, separated by commas")
      ->delimiter(',')
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{2}, kMaxLength));
  command
      .add_option("--depths", needles.depths,
                  "Depths at which keys stand, evenly from .05 to .95 of the length")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{100}));
  command
      .add_option("--keys", needles.keys,
                  "Keys of different colours in one text, each of which is asked for")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, NeedleColours().size()));
  command
      .add_option("--question-step", needles.question_step,
                  "Tokens of a question run at once; with 16 or fewer graph and cluster look "
                  "up for the question too, with more from the first digit of the answer on")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, kChunkTokens));
  command.add_option("--seed", needles.seed, "Seed of the keys and of where the texts begin")
      ->check(is_unsigned)
      ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 30));
}

void AddHeadFlags(CLI::App& command, EvalArguments& arguments) {
  AddStreamingFlags(command, arguments.streaming, StreamingShares::kSeveral);
  CLI::Option* const profile_heads =
      command
          .add_option("--profile-heads", arguments.profile_heads,
                      "Compare nothing, but measure how much each KV head needs what is beyond "
                      "--sinks and --window to find pass keys in texts of --lengths, and write "
                      "that as JSON for --head-profile")
          ->type_name("FILE");
  for (const char* other : {"--policy", "--perplexity", "--needles", "--share", "--head-profile",
                            "--streaming-heads", "--weights", "--json", "--plot"}) {
    profile_heads->excludes(command.get_option(other));
  }
  command
      .add_option("--profile-texts", arguments.profile_texts,
                  "Texts of each length that heads are measured on")
      ->check(CLI::Validator(CheckUnsigned, ""))
      ->check(CLI::Range(size_t{1}, size_t{1} << 20));
}

}  // namespace

void AddEvalCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command = app.add_subcommand(
      "eval", "Compares policies: perplexity of a model of bytes, and needles that it finds");
  command->option_defaults()->always_capture_default();
  auto arguments = std::make_shared<EvalArguments>();
  command
      ->add_option("--model", arguments->setup.model,
                   "Folder with config.json and model.safetensors, as Hugging Face lays it out")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--text", arguments->setup.text,
                   "File with the text to predict and to hide needles in")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--policy", arguments->policies,
                   absl::StrCat("Policies to compare, separated by commas, the first one as the "
                                "baseline: ",
                                AttentionPolicyNames()))
      ->type_name("LIST");
  AddPerplexityFlags(*command, *arguments);
  AddNeedleFlags(*command, *arguments);
  command
      ->add_option(
          "--share", arguments->setup.share,
          "Size the tiers by the text: DRAM holds this share of its KV, the rest is on "
          "NVMe, and lookups attend to as large a share of its blocks or tokens, "
          "instead of --dram, --lookup-blocks, --lookup-keys and --cluster-share. graph "
          "keeps what it indexes in DRAM, and cluster builds a segment of a KV head there; "
          "what finds no room is exact")
      ->check(CLI::Range(1e-6, 1.0));
  AddRuntimeFlags(*command, arguments->setup.runtime,
                  "Directory for the NVMe tier, whose files are gone after the run");
  AddWeightFlags(*command, arguments->weights, Predictors::kSeveral);
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  command->add_option("--plot", arguments->plot, "Draw the needles as heat maps, SVG")
      ->type_name("FILE");
  AddHeadFlags(*command, *arguments);
  command->callback([arguments, &run] { run = [arguments] { return RunCommand(*arguments); }; });
}

}  // namespace terrace
