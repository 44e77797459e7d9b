#include "tools/pack_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/engine/input_file.h"
#include "tools/output_file.h"
#include "tools/pack_report.h"
#include "tools/pack_run.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxCalibrationBytes = uint64_t{256} << 20;

struct PackArguments {
  PackSetup setup;
  std::string dtype = "fp16";
  std::string layout = "bundled";
  bool gate_first = false;
  std::string group_neurons = "auto";
  std::string calibrate;  // a text file
  std::string inspect;    // a bundle file
  bool verify = false;
  std::string json;
};

// Checks what CLI11 cannot, and fills the setup.
absl::Status TakeArguments(PackArguments& arguments) {
  PackSetup& setup = arguments.setup;
  const bool packs = !setup.model.empty() || !setup.out.empty();
  if (arguments.inspect.empty() && (setup.model.empty() || setup.out.empty())) {
    return absl::InvalidArgumentError("needs --model and --out, or --inspect");
  }
  if (!arguments.inspect.empty() && packs) {
    return absl::InvalidArgumentError("--inspect: looks at a file, and packs none");
  }
  if (arguments.verify && arguments.inspect.empty()) {
    return absl::InvalidArgumentError("--verify: needs --inspect");
  }
  setup.dtype = arguments.dtype == "fp32"   ? KvDtype::kFloat32
                : arguments.dtype == "bf16" ? KvDtype::kBfloat16
                                            : KvDtype::kFloat16;
  setup.layout = arguments.layout == "gate-first"  ? BundleLayout::kGateFirst
                 : arguments.layout == "unbundled" ? BundleLayout::kUnbundled
                                                   : BundleLayout::kBundled;
  if (arguments.gate_first) setup.layout = BundleLayout::kGateFirst;
  if (arguments.group_neurons != "auto" &&
      (!absl::SimpleAtoi(arguments.group_neurons, &setup.group_neurons) ||
       setup.group_neurons < 1 || setup.group_neurons > BundleShape::kMaxGroupNeurons)) {
    return absl::InvalidArgumentError(absl::StrCat("--group-neurons: \"", arguments.group_neurons,
                                                   "\" is not auto or from 1 to ",
                                                   BundleShape::kMaxGroupNeurons));
  }
  return absl::OkStatus();
}

absl::StatusOr<PackReport> Pack(PackArguments& arguments) {
  if (!arguments.calibrate.empty()) {
    absl::StatusOr<std::string> text = ReadWholeFile(arguments.calibrate, kMaxCalibrationBytes);
    if (!text.ok()) return text.status();
    arguments.setup.calibration_text = *std::move(text);
  }
  const std::atomic<bool>& stop = StopOnSignals();
  ProgressLine line(stderr);
  const auto progress = [&line](uint64_t done, uint64_t all) {
    const absl::Time now = absl::Now();
    if (!line.Due(now)) return;
    line.Update(now, absl::StrCat(FormatByteSize(done), " of ", FormatByteSize(all)));
  };
  if (!arguments.inspect.empty()) {
    return InspectBundles(arguments.inspect, arguments.verify, stop, progress);
  }
  return RunPack(arguments.setup, stop, progress);
}

ExitCode Complain(const absl::Status& status, ExitCode code = ExitCode::kFailure) {
  std::fprintf(stderr, "terrace pack: %s\n", std::string(status.message()).c_str());
  return code;
}

ExitCode RunCommand(PackArguments& arguments) {
  if (absl::Status status = TakeArguments(arguments); !status.ok()) {
    return Complain(status, ExitCode::kBadUsage);
  }
  const std::vector<std::string> used = {arguments.setup.out, arguments.inspect,
                                         arguments.calibrate};
  OutputFile json("--json", arguments.json, used);
  if (!json.status().ok()) return Complain(json.status());
  const absl::StatusOr<PackReport> report = Pack(arguments);
  if (!report.ok()) return Complain(report.status());
  const absl::Status printed = PrintText(PackText(*report));
  const absl::Status written = json.Write(JsonText(PackJson(*report)));
  if (!printed.ok()) return Complain(printed);
  if (!written.ok()) return Complain(written);
  return ExitCode::kSuccess;
}

void AddLayoutFlags(CLI::App& command, PackArguments& arguments) {
  command.add_option("--dtype", arguments.dtype, "How weights are stored")
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}));
  command
      .add_option(
          "--layout", arguments.layout,
          "bundled: all parts of a neuron in a row; gate-first: the gates of a group in "
          "pages of their own; unbundled: each part apart, as matrices lie, to compare with")
      ->check(CLI::IsMember({"bundled", "gate-first", "unbundled"}));
  command.add_flag("--gate-first", arguments.gate_first, "Short for --layout gate-first");
  command
      .add_option("--group-neurons", arguments.group_neurons,
                  "Neurons that are read together; auto: the fewest whose pages are padded by a "
                  "quarter at most")
      ->type_name("N");
}

void AddCalibrationFlags(CLI::App& command, PackArguments& arguments) {
  CLI::Option* const calibrate =
      command
          .add_option("--calibrate", arguments.calibrate,
                      "Run this text through the model, which then is in memory as a whole: hot "
                      "neurons are stored together, and low-rank predictors are made")
          ->type_name("FILE");
  CalibrationOptions& options = arguments.setup.calibration;
  command.add_option("--calibrate-tokens", options.tokens, "Of the text, at most")
      ->check(CLI::Range(size_t{1024}, size_t{1} << 28))
      ->needs(calibrate);
  command.add_option("--rank", options.rank, "Of the predictors; 0: a quarter of the width")
      ->check(CLI::Range(0u, 4096u))
      ->needs(calibrate);
  command
      .add_option("--false-negatives", options.false_negative_bound,
                  "The share of firing neurons that predictors may miss in a part of the text "
                  "that they are not fitted to")
      ->check(CLI::Range(0.0, 0.5))
      ->check(CLI::Validator(CheckNotNan, ""))
      ->needs(calibrate);
  command
      .add_flag("--keep-order", arguments.setup.keep_order,
                "Store neurons in the order of the model all the same")
      ->needs(calibrate);
}

}  // namespace

void AddPackCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command = app.add_subcommand(
      "pack", "Writes the feed-forward weights of a model as bundles, for paging from flash");
  command->option_defaults()->always_capture_default();
  auto arguments = std::make_shared<PackArguments>();
  command
      ->add_option("--model", arguments->setup.model,
                   "Folder with config.json and safetensors, named as Llama's or Mixtral's")
      ->type_name("DIR");
  command
      ->add_option("--out", arguments->setup.out,
                   "The bundle file; it appears when it is whole, in place of one that was there")
      ->type_name("FILE");
  AddLayoutFlags(*command, *arguments);
  AddCalibrationFlags(*command, *arguments);
  command->add_option("--inspect", arguments->inspect, "Describe this bundle file instead")
      ->type_name("FILE");
  command->add_flag("--verify", arguments->verify, "With --inspect, check every page of it");
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  command->callback([arguments, &run] { run = [arguments] { return RunCommand(*arguments); }; });
}

}  // namespace terrace
