#include "tools/ssd_command.h"

#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "io/aligned_buffer.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/ssd_file.h"
#include "tools/ssd_plot.h"
#include "tools/ssd_report.h"
#include "tools/ssd_workload.h"
#include "tools/stop_signal.h"

namespace terrace {
namespace {

constexpr size_t kMaxDepth = 4096;
constexpr uint64_t kMaxBlockBytes = uint64_t{256} << 20;
constexpr uint64_t kMaxBufferBytes = uint64_t{2} << 30;
constexpr uint64_t kFillBufferBytes = uint64_t{16} << 20;
constexpr uint64_t kDefaultSizeBytes = uint64_t{2} << 30;

struct SsdArguments {
  std::string dir;
  std::string file;
  uint64_t size = 0;
  std::string block_bytes = "4k,32k,128k,1m";
  std::string depth = "1,8,32,64";
  std::string op = "randread,seqread";
  double seconds = 4;
  double warmup = 0.5;
  std::string engine = "auto";
  uint64_t seed = 1;
  bool force = false;
  std::string json;
  std::string profile;
  std::string plot;
};

// What the flags come to.
struct Setup {
  SsdFileOptions file;
  std::vector<SsdOp> ops;
  std::vector<uint64_t> blocks;
  std::vector<size_t> depths;
  uint64_t buffer_bytes = 0;  // of the largest row
};

absl::Status CheckSeconds(const char* flag, double seconds, bool may_be_zero) {
  constexpr double kMaxSeconds = 86400;
  if (seconds <= kMaxSeconds && (seconds > 0 || (may_be_zero && seconds == 0))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": ", seconds, " is not between 0 and ", kMaxSeconds, " seconds"));
}

absl::Status ParseLists(const SsdArguments& arguments, Setup& setup) {
  for (absl::string_view text : absl::StrSplit(arguments.block_bytes, ',')) {
    const absl::StatusOr<uint64_t> block = ParseByteSize(text);
    if (!block.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--block-bytes: ", std::string(block.status().message())));
    }
    if (*block == 0 || !IsPageAligned(*block) || *block > kMaxBlockBytes) {
      return absl::InvalidArgumentError(absl::StrCat("--block-bytes: ", *block,
                                                     " is not a multiple of ", kPageBytes, " from ",
                                                     kPageBytes, " to ", kMaxBlockBytes));
    }
    setup.blocks.push_back(*block);
  }
  for (absl::string_view text : absl::StrSplit(arguments.depth, ',')) {
    uint64_t depth = 0;
    if (!absl::SimpleAtoi(text, &depth) || depth == 0 || depth > kMaxDepth) {
      return absl::InvalidArgumentError(
          absl::StrCat("--depth: \"", text, "\" is not a number from 1 to ", kMaxDepth));
    }
    setup.depths.push_back(depth);
  }
  for (absl::string_view text : absl::StrSplit(arguments.op, ',')) {
    absl::StatusOr<SsdOp> op = ParseSsdOp(text);
    if (!op.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--op: ", std::string(op.status().message())));
    }
    setup.ops.push_back(*std::move(op));
  }
  return absl::OkStatus();
}

absl::StatusOr<Setup> MakeSetup(const SsdArguments& arguments) {
  const auto invalid = [](auto&&... text) {
    return absl::InvalidArgumentError(absl::StrCat(text...));
  };
  if (arguments.dir.empty() == arguments.file.empty()) {
    return invalid("exactly one of --dir and --file is needed");
  }
  Setup setup;
  if (absl::Status status = ParseLists(arguments, setup); !status.ok()) return status;
  for (const absl::Status& status : {CheckSeconds("--seconds", arguments.seconds, false),
                                     CheckSeconds("--warmup", arguments.warmup, true)}) {
    if (!status.ok()) return status;
  }
  setup.file.dir = arguments.dir;
  setup.file.file = arguments.file;
  setup.file.size_bytes = arguments.size;
  if (arguments.file.empty() && arguments.size == 0) setup.file.size_bytes = kDefaultSizeBytes;
  if (!IsPageAligned(setup.file.size_bytes)) {
    return invalid("--size: ", arguments.size, " is not a multiple of ", kPageBytes);
  }
  const uint64_t largest = *std::max_element(setup.blocks.begin(), setup.blocks.end());
  if (setup.file.size_bytes > 0 && largest > setup.file.size_bytes) {
    return invalid("--block-bytes: ", largest, " is more than --size, ", setup.file.size_bytes);
  }
  const size_t deepest = *std::max_element(setup.depths.begin(), setup.depths.end());
  setup.buffer_bytes = largest * deepest;
  if (setup.buffer_bytes > kMaxBufferBytes) {
    return invalid("--depth ", deepest, " with --block-bytes ", largest, " needs buffers of ",
                   setup.buffer_bytes, " bytes, more than ", kMaxBufferBytes);
  }
  for (const SsdOp& op : setup.ops) setup.file.writes |= op.writes();
  setup.file.force = arguments.force;
  setup.file.engine = *ParseIoEngine(arguments.engine);
  setup.file.depth = deepest;
  return setup;
}

std::string KernelText() {
  utsname name = {};
  if (::uname(&name) != 0) return "unknown";
  return absl::StrCat(name.sysname, " ", name.release, " ", name.machine);
}

// Runs every row. A signal ends it early, with the rows that are complete.
void RunRows(const SsdArguments& arguments, const Setup& setup, BlockDevice& device,
             absl::Span<std::byte> memory, const std::atomic<bool>& stop, ProgressLine& progress,
             SsdReport& report) {
  for (const SsdOp& op : setup.ops) {
    for (const uint64_t block : setup.blocks) {
      for (const size_t depth : setup.depths) {
        progress.Update(absl::Now(),
                        absl::StrCat("row ", report.rows.size() + 1, " of ", report.planned_rows,
                                     ": ", op.name, " ", FormatByteSize(block), " depth ", depth));
        SsdRowOptions row;
        row.op = op;
        row.block_bytes = block;
        row.depth = depth;
        row.size_bytes = report.size_bytes;
        row.warmup = absl::Seconds(arguments.warmup);
        row.duration = absl::Seconds(arguments.seconds);
        row.seed = arguments.seed + report.rows.size();
        SsdRow done = RunSsdRow(device, memory, row, stop);
        if (stop.load(std::memory_order_relaxed)) return;
        report.rows.push_back(std::move(done));
      }
    }
  }
}

absl::StatusOr<SsdReport> Measure(const SsdArguments& arguments, const Setup& setup,
                                  const std::atomic<bool>& stop) {
  absl::StatusOr<AlignedBuffer> memory =
      AlignedBuffer::Create(std::max(setup.buffer_bytes, kFillBufferBytes));
  if (!memory.ok()) return memory.status();
  absl::StatusOr<SsdFile> file = OpenSsdFile(setup.file);
  if (!file.ok()) return file.status();
  const uint64_t largest = *std::max_element(setup.blocks.begin(), setup.blocks.end());
  if (largest > file->size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("--block-bytes: ", largest, " is more than the ",
                                                   file->size_bytes, " bytes of ", arguments.file));
  }
  const iovec whole = {memory->data(), memory->size()};
  // Where the engine has none, or the limit on locked memory is too low, the setup shows it.
  static_cast<void>(file->device->RegisterBuffers({&whole, 1}));
  SsdReport report;
  report.device = file->device->info();
  report.source = file->source;
  report.filesystem = file->filesystem;
  report.kernel = KernelText();
  report.warning = file->warning;
  report.size_bytes = file->size_bytes;
  report.planned_rows = setup.ops.size() * setup.blocks.size() * setup.depths.size();
  ProgressLine progress(stderr);
  FillRandom(memory->span(), arguments.seed);
  if (file->owned) {
    absl::Status filled =
        FillSsdFile(*file, memory->span(), arguments.seed, stop, [&](uint64_t bytes) {
          progress.Update(absl::Now(), absl::StrCat("filling: ", FormatByteSize(bytes), " of ",
                                                    FormatByteSize(file->size_bytes)));
        });
    if (absl::IsCancelled(filled)) return report;
    if (!filled.ok()) return filled;
  }
  RunRows(arguments, setup, *file->device, memory->span(), stop, progress, report);
  return report;
}

// Whether WriteDeviceProfile will be able to replace the file, found out before the run. It makes a
// new file beside it and renames that, which must not befall a device such as /dev/stdout.
absl::Status CheckProfilePath(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  struct stat info = {};
  if (::lstat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("--profile ", path, ": is no regular file"));
  }
  return OutputFile("--profile", absl::StrCat(path, ".new.", ::getpid())).status();
}

ExitCode Complain(const absl::Status& status, ExitCode code) {
  std::fprintf(stderr, "terrace ssd: %s\n", std::string(status.message()).c_str());
  return code;
}

// What keeps the measurement from being whole and good.
absl::Status EndOf(const SsdArguments& arguments, const SsdReport& report) {
  const bool saves = !arguments.profile.empty() || !arguments.plot.empty();
  const char* unsaved = saves ? "; --profile and --plot are not written" : "";
  if (report.interrupted()) {
    return absl::CancelledError(absl::StrCat("interrupted by a signal", unsaved));
  }
  if (report.errors() > 0) {
    return absl::DataLossError(
        absl::StrCat(report.errors(), " requests failed; the rows say which first", unsaved));
  }
  return absl::OkStatus();
}

ExitCode RunSsd(const SsdArguments& arguments) {
  const absl::StatusOr<Setup> setup = MakeSetup(arguments);
  if (!setup.ok()) return Complain(setup.status(), ExitCode::kBadUsage);
  OutputFile json("--json", arguments.json, {arguments.file});
  OutputFile plot("--plot", arguments.plot, {arguments.file});
  for (const absl::Status& status : {json.status(), plot.status(),
                                     CheckNotUsed("--profile", arguments.profile, {arguments.file}),
                                     CheckProfilePath(arguments.profile)}) {
    if (!status.ok()) return Complain(status, ExitCode::kFailure);
  }
  const absl::StatusOr<SsdReport> report = Measure(arguments, *setup, StopOnSignals());
  if (!report.ok()) return Complain(report.status(), ExitCode::kFailure);
  const absl::Status end = EndOf(arguments, *report);
  std::vector<absl::Status> results = {PrintText(SsdText(*report)),
                                       json.Write(JsonText(SsdJson(*report)))};
  // Neither of these says what it lacks, so half of one must not replace a whole one.
  if (end.ok()) {
    const DeviceProfile profile = SsdProfile(*report);
    results.push_back(plot.Write(SsdPlot(profile)));
    if (!arguments.profile.empty()) {
      results.push_back(WriteDeviceProfile(profile, arguments.profile));
    }
  }
  results.push_back(end);
  ExitCode code = ExitCode::kSuccess;
  for (const absl::Status& status : results) {
    if (!status.ok()) code = Complain(status, ExitCode::kFailure);
  }
  return code;
}

void AddPlaceOptions(CLI::App& command, SsdArguments& arguments) {
  command
      .add_option("--dir", arguments.dir,
                  "Measure a file made in this directory, which is removed again")
      ->type_name("DIR");
  command
      .add_option("--file", arguments.file, "Measure this existing file or block device instead")
      ->type_name("EXISTING");
  AddByteSizeOption(command, "--size", arguments.size,
                    "Bytes to use; 0 is 2 GiB for --dir and the whole of --file");
  command.add_flag("--force", arguments.force,
                   "Let write ops overwrite what --file names, even a mounted block device");
}

}  // namespace

void AddSsdCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command =
      app.add_subcommand("ssd", "Measures a disk and says what suits KV blocks on it");
  command->option_defaults()->always_capture_default();
  auto arguments = std::make_shared<SsdArguments>();
  AddPlaceOptions(*command, *arguments);
  command->add_option("--block-bytes", arguments->block_bytes, "Sizes of a request, with commas")
      ->type_name("SIZES");
  command->add_option("--depth", arguments->depth, "Requests in flight, with commas")
      ->type_name("DEPTHS");
  command
      ->add_option("--op", arguments->op,
                   "randread, seqread, randwrite, seqwrite or mixed:N (N % reads), with commas")
      ->type_name("OPS");
  command->add_option("--seconds", arguments->seconds,
                      "Measured time of a row; up to twice that until the rate is steady");
  command->add_option("--warmup", arguments->warmup, "Seconds before each row is measured");
  command->add_option("--engine", arguments->engine, "I/O engine")
      ->check(CLI::IsMember({"auto", "io_uring", "threads"}));
  command->add_option("--seed", arguments->seed, "Seed of offsets and bytes")
      ->check(CLI::Validator(CheckUnsigned, ""));
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  command->add_option("--profile", arguments->profile, "Write a device profile for the library")
      ->type_name("FILE");
  command->add_option("--plot", arguments->plot, "Write a diagram")->type_name("FILE.svg");
  command->callback([arguments, &run] { run = [arguments] { return RunSsd(*arguments); }; });
}

}  // namespace terrace
