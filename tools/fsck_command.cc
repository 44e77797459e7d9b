#include "tools/fsck_command.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/block_device.h"
#include "nlohmann/json.hpp"
#include "tiers/nvme_check.h"
#include "tiers/tier_file.h"
#include "tools/fsck_report.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"

namespace terrace {
namespace {

struct FsckArguments {
  std::string dir;
  bool repair = false;
  std::string json;
};

// Takes the file as it is.
absl::StatusOr<std::unique_ptr<BlockDevice>> Open(const FsckArguments& arguments) {
  FileDeviceOptions options;
  options.path = TierFilePath(arguments.dir);
  options.read_only = !arguments.repair;
  return OpenFileDevice(options);
}

// Gives the file the size of the tier that it holds, unless that is another tier by now.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenInFullSize(const FsckArguments& arguments,
                                                            const Superblock& tier) {
  FileDeviceOptions options;
  options.path = TierFilePath(arguments.dir);
  options.size_bytes = tier.geometry.total_bytes();
  options.cut_tail = true;
  options.decide_truncate = [&](BlockDevice& device, uint64_t) -> absl::StatusOr<bool> {
    const absl::StatusOr<std::optional<Superblock>> found = ReadSuperblock(
        [&device](absl::Span<IoRequest* const> batch) { return RunBatch(device, batch); },
        options.path);
    if (!found.ok()) return found.status();
    if (*found && (*found)->epoch == tier.epoch) return false;
    return absl::UnavailableError(
        absl::StrCat(options.path, ": another process changed it before it could be repaired"));
  };
  return OpenFileDevice(options);
}

absl::StatusOr<CheckReport> Check(BlockDevice& device, ProgressLine& progress) {
  const std::atomic<bool>& stop = StopOnSignals();
  absl::StatusOr<CheckReport> report = CheckNvmeTier(device, [&](const CheckProgress& so_far) {
    const absl::Time now = absl::Now();
    if (progress.Due(now)) progress.Update(now, FsckProgressText(so_far));
    return !stop.load(std::memory_order_relaxed);
  });
  progress.Clear();
  if (absl::IsCancelled(report.status())) return absl::CancelledError("interrupted by a signal");
  return report;
}

// Repairs what a check of `device` has found, and checks it again.
absl::Status Repair(const FsckArguments& arguments, std::unique_ptr<BlockDevice> device,
                    ProgressLine& progress, FsckReport& report) {
  CheckReport plan = report.found;
  const uint64_t needs = plan.superblock.geometry.total_bytes();
  if (device->info().size_bytes != needs) {
    // A second device on the file would meet the lock of the first.
    device.reset();
    absl::StatusOr<std::unique_ptr<BlockDevice>> resized =
        OpenInFullSize(arguments, plan.superblock);
    if (!resized.ok()) return resized.status();
    device = *std::move(resized);
    absl::StatusOr<CheckReport> again = Check(*device, progress);
    if (!again.ok()) return again.status();
    plan = *std::move(again);
  }
  if (absl::Status status = RepairNvmeTier(*device, plan); !status.ok()) return status;
  absl::StatusOr<CheckReport> after = Check(*device, progress);
  if (!after.ok()) return after.status();
  report.after = *std::move(after);
  return absl::OkStatus();
}

absl::StatusOr<FsckReport> CheckTier(const FsckArguments& arguments) {
  const absl::Time start = absl::Now();
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = Open(arguments);
  if (!device.ok()) return device.status();
  ProgressLine progress(stderr);
  FsckReport report;
  report.path = TierFilePath(arguments.dir);
  absl::StatusOr<CheckReport> found = Check(**device, progress);
  if (!found.ok()) return found.status();
  report.found = *std::move(found);
  if (arguments.repair && !report.found.clean()) {
    absl::Status repaired = Repair(arguments, *std::move(device), progress, report);
    if (!repaired.ok()) return repaired;
  }
  report.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return report;
}

ExitCode Complain(const absl::Status& status, ExitCode code) {
  std::fprintf(stderr, "terrace fsck: %s\n", std::string(status.message()).c_str());
  return code;
}

ExitCode RunFsck(const FsckArguments& arguments) {
  if (arguments.dir.empty()) {
    return Complain(absl::InvalidArgumentError("--dir: is empty"), ExitCode::kBadUsage);
  }
  OutputFile json("--json", arguments.json, {TierFilePath(arguments.dir)});
  if (!json.status().ok()) return Complain(json.status(), ExitCode::kFailure);
  const absl::StatusOr<FsckReport> report = CheckTier(arguments);
  if (!report.ok()) return Complain(report.status(), ExitCode::kFailure);
  const absl::Status printed = PrintText(FsckText(*report));
  const absl::Status written = json.Write(JsonText(FsckJson(*report)));
  if (!printed.ok()) return Complain(printed, ExitCode::kFailure);
  if (!written.ok()) return Complain(written, ExitCode::kFailure);
  if (!report->clean()) {
    const size_t count = report->last().damage.size();
    return Complain(
        absl::DataLossError(absl::StrCat(report->path, ": ", count, " damages",
                                         report->after ? " that repair could not mend" : "")),
        ExitCode::kFailure);
  }
  return ExitCode::kSuccess;
}

}  // namespace

void AddFsckCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command = app.add_subcommand(
      "fsck", "Checks the NVMe tier in a directory, every record and every byte of its blocks");
  command->footer(
      "Exit status: 0 clean or mended; 1 damaged, or not checked; 2 bad usage.\n"
      "Damaged: the report is on standard output and says DAMAGED, or STILL DAMAGED after "
      "--repair;\n"
      "standard error says \"N damages\"; the JSON has \"clean\": false.\n"
      "Not checked: standard output is empty, no JSON is written (an older one stays), and\n"
      "standard error says why: "
      "\"locked by another process\", \"No such file or directory\", \"is not a tier file\", ...");
  command->option_defaults()->always_capture_default();
  auto arguments = std::make_shared<FsckArguments>();
  command
      ->add_option("--dir", arguments->dir, "Directory of the NVMe tier; no other process uses it")
      ->required()
      ->type_name("DIR");
  command->add_flag("--repair", arguments->repair,
                    "Mend what is damaged; without it, nothing is written. Damaged blocks are "
                    "dropped");
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  command->callback([arguments, &run] { run = [arguments] { return RunFsck(*arguments); }; });
}

}  // namespace terrace
