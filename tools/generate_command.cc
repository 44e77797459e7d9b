#include "tools/generate_command.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/engine.h"
#include "tools/engine/generate.h"
#include "tools/engine/input_file.h"
#include "tools/engine/plain_attention.h"
#include "tools/engine/sampler.h"
#include "tools/output_file.h"
#include "tools/stop_signal.h"
#include "tools/table.h"

namespace terrace {
namespace {

struct GenerateArguments {
  std::string model;
  std::string prompt;
  std::string prompt_file;
  int64_t tokens = 128;
  SamplerOptions sampler;
  std::string json;
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
  if (!arguments.prompt.empty()) return arguments.prompt;
  if (!arguments.prompt_file.empty()) return ReadWholeFile(arguments.prompt_file, kMaxPromptBytes);
  return ReadStandardInput();
}

// What a run did, for the table and the JSON.
struct GenerateReport {
  int64_t prompt_tokens = 0;
  GenerateResult result;
  EngineTimes prefill;  // up to the first generated token
  EngineTimes all;
  uint64_t weight_bytes = 0;
  bool interrupted = false;

  int64_t decoded_tokens() const { return all.tokens - prefill.tokens; }
};

double PerSecond(int64_t tokens, absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

std::string ReportText(const GenerateReport& report) {
  Table table({{"", Align::kLeft}, {"tokens"}, {"time"}, {"attention"}, {"tokens/s"}});
  const auto add = [&](const char* name, int64_t tokens, absl::Duration time,
                       absl::Duration attention) {
    table.AddRow({name, FormatCount(static_cast<uint64_t>(tokens)),
                  FormatSeconds(absl::ToDoubleSeconds(time)),
                  FormatPercent(absl::FDivDuration(attention, time)),
                  absl::StrFormat("%.1f", PerSecond(tokens, time))});
  };
  add("prefill", report.prompt_tokens, report.result.prefill, report.prefill.attention);
  add("decode", report.decoded_tokens(), report.result.decode,
      report.all.attention - report.prefill.attention);
  return absl::StrCat("\n\n", table.ToString(), "weights ", FormatByteSize(report.weight_bytes),
                      " in fp32\n");
}

nlohmann::ordered_json ReportJson(const GenerateReport& report) {
  const auto seconds = [](absl::Duration duration) { return absl::ToDoubleSeconds(duration); };
  return {{"prompt_tokens", report.prompt_tokens},
          {"generated_tokens", report.result.generated_tokens},
          {"decoded_tokens", report.decoded_tokens()},
          {"prefill_seconds", seconds(report.result.prefill)},
          {"prefill_attention_seconds", seconds(report.prefill.attention)},
          {"decode_seconds", seconds(report.result.decode)},
          {"decode_attention_seconds", seconds(report.all.attention - report.prefill.attention)},
          {"weight_bytes", report.weight_bytes}};
}

absl::StatusOr<GenerateReport> Run(const GenerateArguments& arguments) {
  absl::StatusOr<Sampler> sampler = Sampler::Create(arguments.sampler);
  if (!sampler.ok()) return sampler.status();
  const absl::StatusOr<std::unique_ptr<Engine>> loaded = Engine::Load(arguments.model);
  if (!loaded.ok()) return loaded.status();
  Engine& engine = **loaded;
  if (absl::Status status = CheckByteModel(engine.config()); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(arguments.model, ": ", status.message()));
  }
  const absl::StatusOr<std::string> prompt = ReadPrompt(arguments);
  if (!prompt.ok()) return prompt.status();
  const std::vector<int32_t> tokens = EncodeText(*prompt);
  const auto prompt_tokens = static_cast<int64_t>(tokens.size());
  const absl::StatusOr<std::unique_ptr<PlainAttention>> attention =
      PlainAttention::Create(engine.config(), {prompt_tokens + arguments.tokens});
  if (!attention.ok()) return attention.status();

  GenerateReport report;
  report.prompt_tokens = prompt_tokens;
  report.weight_bytes = engine.weights().bytes();
  const std::atomic<bool>& stop = StopOnSignals();
  absl::Status printed;
  const auto take = [&](int32_t token) {
    if (report.prefill.tokens == 0) report.prefill = engine.times();
    printed = PrintText(DecodeTokens({token}));
    report.interrupted = stop;
    return printed.ok() && !report.interrupted;
  };
  const absl::StatusOr<GenerateResult> result =
      Generate({tokens, 0, arguments.tokens}, engine, **attention, *sampler, take);
  if (!result.ok()) return result.status();
  if (!printed.ok()) return printed;
  report.result = *result;
  report.all = engine.times();
  return report;
}

ExitCode Complain(const absl::Status& status) {
  std::fprintf(stderr, "terrace generate: %s\n", std::string(status.message()).c_str());
  return ExitCode::kFailure;
}

ExitCode RunCommand(const GenerateArguments& arguments) {
  OutputFile json("--json", arguments.json);
  if (!json.status().ok()) return Complain(json.status());
  const absl::StatusOr<GenerateReport> report = Run(arguments);
  if (!report.ok()) return Complain(report.status());
  const absl::Status printed = PrintText(ReportText(*report));
  const absl::Status written = json.Write(JsonText(ReportJson(*report)));
  if (!printed.ok()) return Complain(printed);
  if (!written.ok()) return Complain(written);
  if (report->interrupted) return Complain(absl::CancelledError("interrupted by a signal"));
  return ExitCode::kSuccess;
}

}  // namespace

void AddGenerateCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command =
      app.add_subcommand("generate", "Continues a text with a model of bytes in the Llama layout");
  command->option_defaults()->always_capture_default();
  auto arguments = std::make_shared<GenerateArguments>();
  command
      ->add_option("--model", arguments->model,
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
  command->add_option("--tokens", arguments->tokens, "Tokens to generate")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command
      ->add_option("--temperature", arguments->sampler.temperature,
                   "How freely to draw tokens; 0 takes the likeliest")
      ->check(CLI::Range(0.0, 100.0));
  command
      ->add_option("--top-k", arguments->sampler.top_k,
                   "Draw among so many of the likeliest tokens; 0 for all")
      ->check(CLI::Validator(CheckUnsigned, ""));
  command
      ->add_option("--top-p", arguments->sampler.top_p,
                   "Draw among the likeliest tokens that have this probability together")
      ->check(CLI::Range(1e-6, 1.0));
  command->add_option("--seed", arguments->sampler.seed, "Seed of the draws")
      ->check(CLI::Validator(CheckUnsigned, ""));
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  command->callback([arguments, &run] { run = [arguments] { return RunCommand(*arguments); }; });
}

}  // namespace terrace
