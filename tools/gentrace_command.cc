#include "tools/gentrace_command.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tools/gentrace.h"
#include "tools/table.h"
#include "tools/trace_line.h"

namespace terrace {
namespace {

struct GentraceArguments {
  GentraceOptions options;
  std::string out;
};

// The file being written. Unless Close succeeds, a regular file is removed again, so that half a
// trace never passes for a whole one.
class TraceFile {
 public:
  explicit TraceFile(const std::string& path)
      : path_(path == "-" ? "standard output" : path),
        file_(path == "-" ? stdout : std::fopen(path.c_str(), "we")) {
    if (file_ == nullptr) return;
    struct stat info = {};
    removable_ = path != "-" && ::fstat(::fileno(file_), &info) == 0 && S_ISREG(info.st_mode);
  }
  ~TraceFile() {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
    if (removable_) ::unlink(path_.c_str());
  }
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;

  // Of opening; call right after construction, while errno is still fopen's.
  absl::Status OpenStatus() const {
    return file_ != nullptr ? absl::OkStatus() : Error("cannot open for writing");
  }

  absl::Status Write(const std::string& text) {
    const size_t written = std::fwrite(text.data(), 1, text.size(), file_);
    return written == text.size() ? absl::OkStatus() : Error("cannot write");
  }

  absl::Status Close() {
    const int result = file_ == stdout ? std::fflush(file_) : std::fclose(file_);
    file_ = nullptr;
    if (result != 0) return Error("cannot write");
    removable_ = false;
    return absl::OkStatus();
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::ErrnoToStatus(errno, absl::StrCat(path_, ": ", what));
  }

  std::string path_;
  std::FILE* file_;
  bool removable_ = false;
};

absl::Status WriteTrace(const std::string& path, uint64_t requests, TraceGenerator& generator) {
  errno = 0;
  TraceFile file(path);
  if (absl::Status status = file.OpenStatus(); !status.ok()) return status;
  TraceLine request;
  std::string text;
  for (uint64_t i = 0; i < requests; ++i) {
    generator.Next(request);
    text.clear();
    AppendTraceLine(request, text);
    if (absl::Status status = file.Write(text); !status.ok()) return status;
  }
  return file.Close();
}

ExitCode RunGentrace(const GentraceArguments& arguments) {
  absl::StatusOr<TraceGenerator> generator = TraceGenerator::Create(arguments.options);
  if (!generator.ok()) {
    std::fprintf(stderr, "terrace gentrace: %s\n",
                 std::string(generator.status().message()).c_str());
    return ExitCode::kBadUsage;
  }
  absl::Status status = WriteTrace(arguments.out, arguments.options.requests, *generator);
  if (!status.ok()) {
    std::fprintf(stderr, "terrace gentrace: %s\n", std::string(status.message()).c_str());
    return ExitCode::kFailure;
  }
  const GentraceSummary& summary = generator->summary();
  std::fprintf(stderr, "gentrace: %s requests, %s block refs, %s distinct blocks, ideal reuse %s\n",
               FormatCount(summary.requests).c_str(), FormatCount(summary.block_refs).c_str(),
               FormatCount(summary.distinct_blocks).c_str(),
               FormatPercent(summary.ideal_reuse()).c_str());
  return ExitCode::kSuccess;
}

template <typename Unsigned>
void AddUnsigned(CLI::App& command, const std::string& name, Unsigned& target,
                 const std::string& description) {
  command.add_option(name, target, description)->check(CLI::Validator(CheckUnsigned, ""));
}

void AddModelOptions(CLI::App& command, GentraceOptions& options) {
  AddUnsigned(command, "--concurrent-sessions", options.concurrent_sessions,
              "Sessions open at once; more of them put the turns of each further apart");
  command.add_option("--mean-turns", options.mean_turns, "Mean number of turns in a session");
  AddUnsigned(command, "--system-prompts", options.system_prompts,
              "Shared system prompts; the k-th most popular is used in proportion to 1/k");
  AddUnsigned(command, "--mean-system-tokens", options.mean_system_tokens,
              "Mean length of a system prompt in tokens; 0 for none");
  AddUnsigned(command, "--mean-turn-tokens", options.mean_turn_tokens,
              "Mean length of the new user text of a turn in tokens; one text in eight is long");
  AddUnsigned(command, "--mean-output-tokens", options.mean_output_tokens,
              "Mean length of an answer in tokens");
  command.add_option("--requests-per-second", options.requests_per_second,
                     "Mean rate of arrivals; they are a Poisson process");
  AddUnsigned(command, "--max-input-tokens", options.max_input_tokens,
              "Longest prompt in tokens; a session that would exceed it ends");
}

}  // namespace

void AddGentraceCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command = app.add_subcommand(
      "gentrace", "Writes a synthetic trace of a chat service in Mooncake's JSONL format, seeded");
  command->option_defaults()->always_capture_default();
  // The options of the subcommand and its callback point into this, for as long as `app` lives.
  auto arguments = std::make_shared<GentraceArguments>();
  command->add_option("--out", arguments->out, "File to write; - is standard output")
      ->required()
      ->check([](const std::string& path) { return path.empty() ? "the path is empty" : ""; })
      ->type_name("FILE");
  GentraceOptions& options = arguments->options;
  AddUnsigned(*command, "--requests", options.requests, "Requests to make");
  AddUnsigned(*command, "--seed", options.seed,
              "Equal seeds and options make equal traces on every machine");
  AddUnsigned(*command, "--tokens-per-block", options.tokens_per_block,
              "Tokens that one hash id stands for");
  AddModelOptions(*command, options);
  command->callback([arguments, &run] { run = [arguments] { return RunGentrace(*arguments); }; });
}

}  // namespace terrace
