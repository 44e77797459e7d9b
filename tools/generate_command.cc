#include "tools/generate_command.h"

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tools/engine/input_file.h"
#include "tools/generate_report.h"
#include "tools/generate_run.h"
#include "tools/output_file.h"
#include "tools/stop_signal.h"
#include "tools/streaming_heads.h"
#include "tools/timeline_file.h"

namespace terrace {
namespace {

struct GenerateArguments {
  GenerateSetup setup;
  std::string policy = "full";
  StreamingFlags streaming;
  std::optional<std::string> prompt;
  std::string prompt_file;
  std::string json;
  std::string timeline;
};

constexpr uint64_t kMaxPromptBytes = uint64_t{64} << 20;

absl::StatusOr<std::string> ReadStandardInput() {
  std::string text;
  char buffer[64 << 10];
  while (true) {
    const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, "standard input: cannot read");
    if (got == 0) return text;
    text.append(buffer, static_cast<size_t>(got));
    if (text.size() > kMaxPromptBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("standard input: has more than the limit of ", kMaxPromptBytes, " bytes"));
    }
  }
}

absl::StatusOr<std::string> ReadPrompt(const GenerateArguments& arguments) {
  if (arguments.prompt.has_value()) return *arguments.prompt;
  if (!arguments.prompt_file.empty()) return ReadWholeFile(arguments.prompt_file, kMaxPromptBytes);
  return ReadStandardInput();
}

absl::Status CheckArguments(const GenerateArguments& arguments) {
  const GenerateSetup& setup = arguments.setup;
  if (absl::Status status = setup.runtime.Check(); !status.ok()) return status;
  if (absl::Status status = arguments.streaming.Check(); !status.ok()) return status;
  if (absl::Status status = setup.weights.Check(Predictors::kOne); !status.ok()) return status;
  for (const auto& [flag, given] :
       {std::pair("--save", !setup.save.empty()), std::pair("--load", !setup.load.empty()),
        std::pair("--reuse", setup.reuse)}) {
    if (!given) continue;
    if (setup.policy.is_plain()) {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, ": --policy plain keeps nothing in tiers"));
    }
    if (setup.runtime.nvme == 0) {
      return absl::InvalidArgumentError(absl::StrCat(flag, ": needs --nvme and --dir"));
    }
  }
  if (!setup.dump_qkv.empty() && (setup.reuse || !setup.load.empty())) {
    return absl::InvalidArgumentError(
        "--dump-qkv: --load and --reuse do not run all tokens, so there is no dump of them");
  }
  return absl::OkStatus();
}

ExitCode Complain(const absl::Status& status, ExitCode code = ExitCode::kFailure) {
  std::fprintf(stderr, "terrace generate: %s\n", std::string(status.message()).c_str());
  return code;
}

absl::Status AddStreamingHeads(const HeadProfile& profile, GenerateArguments& arguments) {
  GenerateSetup& setup = arguments.setup;
  absl::Status status = CheckProfileFits(profile, setup.model, setup.runtime);
  if (!status.ok()) return status;
  auto with = WithStreamingHeads(setup.policy, profile, arguments.streaming.shares[0]);
  if (with.ok()) setup.policy = *std::move(with);
  return with.status();
}

ExitCode RunCommand(GenerateArguments& arguments) {
  GenerateSetup& setup = arguments.setup;
  const absl::StatusOr<AttentionPolicy> policy =
      ParseAttentionPolicy(arguments.policy, setup.runtime);
  if (!policy.ok()) return Complain(policy.status(), ExitCode::kBadUsage);
  setup.policy = *policy;
  absl::Status usage = CheckArguments(arguments);
  if (!usage.ok()) return Complain(usage, ExitCode::kBadUsage);
  if (!arguments.streaming.profile.empty()) {
    const absl::StatusOr<HeadProfile> profile = arguments.streaming.ReadProfile();
    if (!profile.ok()) return Complain(profile.status());
    usage = AddStreamingHeads(*profile, arguments);
    if (!usage.ok()) return Complain(usage, ExitCode::kBadUsage);
  }
  OutputFile json("--json", arguments.json);
  if (!json.status().ok()) return Complain(json.status());
  TimelineFile timeline(arguments.timeline, {arguments.json});
  if (!timeline.status().ok()) return Complain(timeline.status());
  setup.timeline = timeline.timeline();
  const absl::StatusOr<std::string> prompt = ReadPrompt(arguments);
  if (!prompt.ok()) return Complain(prompt.status());
  setup.prompt = *prompt;
  const absl::StatusOr<GenerateReport> report =
      RunGenerate(setup, StopOnSignals(), [](const std::string& text) { return PrintText(text); });
  if (!report.ok()) return Complain(report.status());
  const absl::Status printed = PrintText(GenerateText(*report));
  const absl::Status written = json.Write(JsonText(GenerateJson(*report)));
  const absl::Status drawn = timeline.Write();
  for (const absl::Status& status : {printed, written, drawn}) {
    if (!status.ok()) return Complain(status);
  }
  if (report->interrupted) return Complain(absl::CancelledError("interrupted by a signal"));
  return ExitCode::kSuccess;
}

void AddSamplerFlags(CLI::App& command, SamplerOptions& sampler) {
  command
      .add_option("--temperature", sampler.temperature,
                  "How freely to draw tokens; 0 takes the likeliest")
      ->check(CLI::Range(0.0, 100.0));
  command
      .add_option("--top-k", sampler.top_k, "Draw among so many of the likeliest tokens; 0 for all")
      ->check(CLI::Validator(CheckUnsigned, ""));
  command
      .add_option("--top-p", sampler.top_p,
                  "Draw among the likeliest tokens that have this probability together")
      ->check(CLI::Range(1e-6, 1.0));
  command.add_option("--seed", sampler.seed, "Seed of the draws")
      ->check(CLI::Validator(CheckUnsigned, ""));
}

void AddContextFlags(CLI::App& command, GenerateArguments& arguments) {
  command
      .add_option("--policy", arguments.policy,
                  absl::StrCat("How attention finds what is beyond sinks and window: ",
                               AttentionPolicyNames(),
                               "; plain is the engine's own attention, without tiers"))
      ->type_name("NAME");
  AddStreamingFlags(command, arguments.streaming, StreamingShares::kOne);
  AddRuntimeFlags(command, arguments.setup.runtime,
                  "Directory of the NVMe tier; its file stays there after the run");
  command.add_flag("--reuse", arguments.setup.reuse,
                   "Start with the blocks and saved contexts that the directory holds: the "
                   "leading tokens of the prompt that are cached there are not run; otherwise, "
                   "unless with --load, start empty");
  command
      .add_option("--load", arguments.setup.load,
                  "Continue this saved context of the directory; the prompt follows it")
      ->type_name("NAME");
  command
      .add_option("--save", arguments.setup.save,
                  "Save the context under this name in the directory")
      ->type_name("NAME");
}

}  // namespace

void AddGenerateCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command =
      app.add_subcommand("generate", "Continues a text with a model of bytes in the Llama layout");
  command->option_defaults()->always_capture_default();
  auto arguments = std::make_shared<GenerateArguments>();
  command
      ->add_option("--model", arguments->setup.model,
                   "Folder with config.json and model.safetensors, as Hugging Face lays it out")
      ->required()
      ->type_name("DIR");
  CLI::Option* const prompt =
      command
          ->add_option("--prompt", arguments->prompt,
                       "Text to continue; without it and --prompt-file, standard input is read")
          ->type_name("TEXT");
  command->add_option("--prompt-file", arguments->prompt_file, "File with the text to continue")
      ->type_name("FILE")
      ->excludes(prompt);
  command->add_option("--tokens", arguments->setup.tokens, "Tokens to generate")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  AddSamplerFlags(*command, arguments->setup.sampler);
  AddContextFlags(*command, *arguments);
  AddWeightFlags(*command, arguments->setup.weights, Predictors::kOne);
  command
      ->add_option("--dump-qkv", arguments->setup.dump_qkv,
                   "Write queries, keys and values of every token as safetensors, for terrace "
                   "index-eval: layers.L.query_heads.H.query in F32, layers.L.kv_heads.H.key and "
                   ".value in F16, each [tokens, head_dim], queries and keys after RoPE, and "
                   "prompt_tokens")
      ->type_name("FILE");
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  AddTimelineFlag(*command, arguments->timeline);
  command->callback([arguments, &run] { run = [arguments] { return RunCommand(*arguments); }; });
}

}  // namespace terrace
