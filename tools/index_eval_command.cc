#include "tools/index_eval_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "tools/decode_eval_report.h"
#include "tools/engine/physical_memory.h"
#include "tools/index_eval/decode_eval.h"
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
  std::string decode_policies;
  std::string decode_device = "cpu";
  DecodeEvalOptions decode;
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

absl::Status CheckDecode(IndexEvalArguments& arguments) {
  for (const absl::string_view name : absl::StrSplit(arguments.decode_policies, ',')) {
    const absl::StatusOr<LookupKind> kind = ParseLookupKind(name);
    if (!kind.ok())
      return absl::InvalidArgumentError(absl::StrCat("--decode: ", kind.status().message()));
    if (*kind == LookupKind::kInfllm) {
      return absl::InvalidArgumentError(
          "--decode: infllm takes keys before RoPE, which heads here are not");
    }
    if (*kind != LookupKind::kFull) arguments.decode.policies.push_back(*kind);
  }
  if (arguments.decode.dram_share < 1 && arguments.decode.dir.empty()) {
    return absl::InvalidArgumentError("--dir: needed when --dram-share is below 1");
  }
  if (arguments.decode.dram_share < 1 && arguments.decode.hbm_share > 0) {
    return absl::InvalidArgumentError(
        "--hbm-share: takes all keys and values in DRAM, so not --dram-share below 1");
  }
  if (arguments.decode_device == "cuda" && arguments.decode.hbm_share == 0) {
    return absl::InvalidArgumentError(
        "--device: cuda with --hbm-share 0 has nothing on the device");
  }
  if (arguments.steps < 2) return absl::InvalidArgumentError("--steps: --decode needs at least 2");
  arguments.decode.threads = arguments.sweep.threads;
  if (arguments.decode_device == "cuda") arguments.decode.hbm_device = HbmDevice::kCuda;
  return absl::OkStatus();
}

ExitCode RunDecode(const IndexEvalArguments& arguments, absl::Span<const EvalHead> heads,
                   OutputFile& json) {
  ProgressLine progress(stderr);
  const absl::StatusOr<DecodeEvalResult> result =
      RunDecodeEval(heads, arguments.decode, StopOnSignals(),
                    [&](absl::string_view line) { progress.Update(absl::Now(), line); });
  progress.Clear();
  if (!result.ok()) return Complain(result.status());
  for (const absl::Status& status :
       {PrintText(DecodeEvalText(*result)), json.Write(JsonText(DecodeEvalJson(*result)))}) {
    if (!status.ok()) return Complain(status);
  }
  return ExitCode::kSuccess;
}

ExitCode RunCommand(IndexEvalArguments& arguments) {
  const absl::StatusOr<std::vector<IndexKind>> kinds = ParseIndexKinds(arguments.indexes);
  if (!kinds.ok()) return Complain(kinds.status(), ExitCode::kBadUsage);
  const absl::Status usage = CheckUsage(arguments);
  if (!usage.ok()) return Complain(usage, ExitCode::kBadUsage);
  const bool decodes = !arguments.decode_policies.empty();
  if (decodes) {
    const absl::Status decode = CheckDecode(arguments);
    if (!decode.ok()) return Complain(decode, ExitCode::kBadUsage);
  }
  OutputFile json("--json", arguments.json, {arguments.dump});
  if (!json.status().ok()) return Complain(json.status());
  OutputFile plot("--plot", arguments.plot, {arguments.dump, arguments.json});
  if (!plot.status().ok()) return Complain(plot.status());
  const absl::StatusOr<std::vector<EvalHead>> heads = MakeHeads(arguments);
  if (!heads.ok()) return Complain(heads.status());
  if (decodes) return RunDecode(arguments, *heads, json);
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

void AddDecodeFlags(CLI::App& command, IndexEvalArguments& arguments) {
  DecodeEvalOptions& decode = arguments.decode;
  CLI::Option* const policies =
      command
          .add_option("--decode", arguments.decode_policies,
                      "Instead of searching indexes, take decode steps through a runtime with each "
                      "of these policies and with full: graph, cluster, quest, streaming")
          ->type_name("LIST")
          ->excludes(command.get_option("--plot"));
  command
      .add_option("--dram-share", decode.dram_share,
                  "--decode: the share of keys and values that DRAM holds; 1: all")
      ->check(CLI::Validator(CheckNotNan, ""))
      ->check(CLI::Range(0.01, 1.0))
      ->needs(policies);
  CLI::Option* const hbm =
      command
          .add_option("--hbm-share", decode.hbm_share,
                      "--decode: the share of keys and values that HBM holds, where sinks, windows "
                      "and blocks are attended to; 0: no HBM")
          ->check(CLI::Validator(CheckNotNan, ""))
          ->check(CLI::Range(0.0, 1.0))
          ->needs(policies);
  command
      .add_option("--device", arguments.decode_device,
                  "--hbm-share: cpu emulates HBM in host memory, cuda uses a CUDA device")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->needs(hbm);
  command.add_option("--dir", decode.dir, "--decode: where the NVMe tiers are, for a while")
      ->type_name("DIR")
      ->needs(policies);
  AddCount(command, "--lookup-keys", decode.lookup.keys,
           "--decode: tokens that graph finds for each query", 1)
      ->needs(policies);
  AddCount(command, "--graph-effort", decode.lookup.effort,
           "--decode: width of graph's search; 0: two and a half times --lookup-keys", 0)
      ->needs(policies);
  command
      .add_option("--cluster-share", decode.lookup.share,
                  "--decode: of the tokens, the share that cluster attends to exactly")
      ->check(CLI::Validator(CheckNotNan, ""))
      ->check(CLI::Range(0.0001, 1.0))
      ->needs(policies);
  command
      .add_option("--cluster-min-share", decode.lookup.min_share,
                  "--decode: tokens with less than this share of a query's attention are estimated "
                  "even where --cluster-share has room for them")
      ->check(CLI::Validator(CheckNotNan, ""))
      ->check(CLI::Range(0.0, 1.0))
      ->needs(policies);
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
  AddDecodeFlags(*command, *arguments);
  command->callback([arguments, &run] { run = [arguments] { return RunCommand(*arguments); }; });
}

}  // namespace terrace
