#include "tools/index_eval_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "tools/engine/physical_memory.h"
#include "tools/index_eval/eval_heads.h"
#include "tools/index_eval/index_kinds.h"
#include "tools/index_eval/index_sweep.h"
#include "tools/index_eval_plot.h"
#include "tools/index_eval_report.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"

namespace terrace {
namespace {

struct IndexEvalArguments {
  std::string dump;
  size_t synthetic_heads = 0;
  SyntheticHeadOptions synthetic;
  DumpSelection selection;
  size_t samples = 16384;
  size_t steps = 64;
  std::string indexes = "flat,ivf,hnsw,graph,cluster";
  SweepOptions sweep;
  bool per_head = false;
  std::string json;
  std::string plot;
};

absl::Status CheckUsage(IndexEvalArguments& arguments) {
  if (arguments.dump.empty() == (arguments.synthetic_heads == 0)) {
    return absl::InvalidArgumentError("needs either --dump or --synthetic");
  }
  arguments.synthetic.samples = arguments.selection.samples = arguments.samples;
  arguments.synthetic.steps = arguments.selection.steps = arguments.steps;
  return arguments.synthetic_heads > 0 ? arguments.synthetic.Validate() : absl::OkStatus();
}

absl::StatusOr<std::vector<EvalHead>> MakeHeads(const IndexEvalArguments& arguments) {
  if (arguments.synthetic_heads > 0) {
    // Keys and values in 2 bytes an element; queries are small beside them.
    const absl::Status fits = CheckFitsMemory(
        absl::StrCat("--synthetic: ", arguments.synthetic_heads, " heads"),
        arguments.synthetic_heads * 4 * arguments.synthetic.keys * arguments.synthetic.head_dim);
    if (!fits.ok()) return fits;
    return MakeSyntheticHeads(arguments.synthetic, arguments.synthetic_heads);
  }
  const absl::StatusOr<QkvDump> dump = QkvDump::Open(arguments.dump);
  if (!dump.ok()) return dump.status();
  return ReadDumpHeads(*dump, arguments.dump, arguments.selection);
}

ExitCode Complain(const absl::Status& status, ExitCode code = ExitCode::kFailure) {
  std::fprintf(stderr, "terrace index-eval: %s\n", std::string(status.message()).c_str());
  return code;
}

ExitCode RunCommand(IndexEvalArguments& arguments) {
  const absl::StatusOr<std::vector<IndexKind>> kinds = ParseIndexKinds(arguments.indexes);
  if (!kinds.ok()) return Complain(kinds.status(), ExitCode::kBadUsage);
  const absl::Status usage = CheckUsage(arguments);
  if (!usage.ok()) return Complain(usage, ExitCode::kBadUsage);
  OutputFile json("--json", arguments.json, {arguments.dump});
  if (!json.status().ok()) return Complain(json.status());
  OutputFile plot("--plot", arguments.plot, {arguments.dump, arguments.json});
  if (!plot.status().ok()) return Complain(plot.status());
  const absl::StatusOr<std::vector<EvalHead>> heads = MakeHeads(arguments);
  if (!heads.ok()) return Complain(heads.status());
  ProgressLine progress(stderr);
  const absl::StatusOr<SweepResult> result =
      RunIndexSweep(*heads, *kinds, arguments.sweep, StopOnSignals(),
                    [&](absl::string_view line) { progress.Update(absl::Now(), line); });
  progress.Clear();
  if (!result.ok()) return Complain(result.status());
  for (const absl::Status& status :
       {PrintText(IndexEvalText(*result, arguments.per_head)),
        json.Write(JsonText(IndexEvalJson(*result))), plot.Write(IndexEvalPlot(*result))}) {
    if (!status.ok()) return Complain(status);
  }
  return ExitCode::kSuccess;
}

constexpr size_t kMany = size_t{1} << 24;

CLI::Option* AddCount(CLI::App& command, const std::string& flag, size_t& count,
                      const std::string& help, size_t low, size_t high = kMany) {
  return command.add_option(flag, count, help)
      ->check(CLI::Validator(CheckUnsigned, ""))
      ->check(CLI::Range(low, high));
}

void AddDumpFlags(CLI::App& command, IndexEvalArguments& arguments, CLI::Option* synthetic) {
  DumpSelection& selection = arguments.selection;
  AddCount(command, "--sinks", selection.sinks,
           "First tokens of a dump's prompt that are left out of its keys", 0)
      ->excludes(synthetic);
  AddCount(command, "--window", selection.window,
           "Last tokens of a dump's prompt that are left out of its keys", 0)
      ->excludes(synthetic);
  for (auto& [flag, list, what] :
       {std::tuple("--layers", &selection.layers, "Layers of a dump, separated by commas; all"),
        std::tuple("--kv-heads", &selection.kv_heads,
                   "KV heads of each layer of a dump, separated by commas; all")}) {
    command.add_option(flag, *list, absl::StrCat(what, " by default"))
        ->delimiter(',')
        ->check(CLI::Validator(CheckUnsigned, ""))
        ->excludes(synthetic);
  }
}

void AddSyntheticFlags(CLI::App& command, IndexEvalArguments& arguments, CLI::Option* dump) {
  SyntheticHeadOptions& synthetic = arguments.synthetic;
  AddCount(command, "--keys", synthetic.keys, "Keys of a synthetic head", 1)->excludes(dump);
  AddCount(command, "--head-dim", synthetic.head_dim, "Dimensions of synthetic heads", 8, 1024)
      ->excludes(dump);
  AddCount(command, "--group", synthetic.group, "Query heads of a synthetic head", 1, 64)
      ->excludes(dump);
  command
      .add_option("--seed", synthetic.seed,
                  "Seed of the first synthetic head; the next has the next")
      ->check(CLI::Validator(CheckUnsigned, ""))
      ->excludes(dump);
}

void AddSearchFlags(CLI::App& command, IndexEvalArguments& arguments) {
  command
      .add_option("--index", arguments.indexes,
                  absl::StrCat("Indexes to compare, separated by commas: ", IndexKindNames(),
                               "; each with options if need be, such as ivf:lists=4096 or "
                               "hnsw:m=32:ef_construction=400, as below, and as often as there are "
                               "variants to compare"))
      ->type_name("LIST");
  AddCount(command, "--k", arguments.sweep.k, "Keys to find for a query", 1);
  command
      .add_option("--efforts", arguments.sweep.efforts,
                  "How hard to look, in the unit of the index (probes, beam width, clusters), "
                  "separated by commas; by default what each index has worth trying")
      ->delimiter(',')
      ->check(CLI::Validator(CheckUnsigned, ""));
  command
      .add_option("--enough-recall", arguments.sweep.enough_recall,
                  "No more efforts of an index once every head has this recall")
      ->check(CLI::Validator(CheckNotNan, ""))
      ->check(CLI::Range(0.0, 1.0));
  AddCount(command, "--samples", arguments.samples,
           "Queries of prefill that an index may learn from, over the heads of a group", 0);
  AddCount(command, "--steps", arguments.steps,
           "Steps of decoding whose queries are searched for; they are none of the samples", 1);
  AddCount(command, "--threads", arguments.sweep.threads,
           "Threads that build; 0 for as many as processors. One searches", 0, 1024);
}

}  // namespace

void AddIndexEvalCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command = app.add_subcommand(
      "index-eval", "Compares key indexes: recall, attention mass, error, latency, memory");
  command->option_defaults()->always_capture_default();
  command->footer(absl::StrCat("Options of indexes, each a whole number:\n", IndexOptionNames()));
  auto arguments = std::make_shared<IndexEvalArguments>();
  CLI::Option* const dump =
      command
          ->add_option("--dump", arguments->dump,
                       "Queries, keys and values that terrace generate --dump-qkv wrote: keys are "
                       "the prompt's, searches those of generated tokens")
          ->type_name("FILE");
  CLI::Option* const synthetic =
      AddCount(*command, "--synthetic", arguments->synthetic_heads,
               "So many seeded synthetic heads, whose queries are out of the distribution of "
               "their keys",
               1, 1024)
          ->excludes(dump);
  AddDumpFlags(*command, *arguments, synthetic);
  AddSyntheticFlags(*command, *arguments, dump);
  AddSearchFlags(*command, *arguments);
  command->add_flag("--per-head", arguments->per_head, "Also print the figures head by head");
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  command
      ->add_option("--plot", arguments->plot,
                   "Draw recall against the share of keys scanned and against latency, SVG")
      ->type_name("FILE");
  command->callback([arguments, &run] { run = [arguments] { return RunCommand(*arguments); }; });
}

}  // namespace terrace
