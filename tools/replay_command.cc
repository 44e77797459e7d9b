#include "tools/replay_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "tiers/tier_file.h"
#include "tools/byte_size.h"
#include "tools/model_shape.h"
#include "tools/output_file.h"
#include "tools/replay_report.h"
#include "tools/replay_run.h"
#include "tools/timeline_file.h"
#include "tools/trace.h"

namespace terrace {
namespace {

struct ReplayArguments {
  std::string trace;
  std::string format = "mooncake";
  uint32_t tokens_per_block = 512;
  uint64_t block_bytes = uint64_t{64} << 10;
  std::string model_shape;
  std::string scale = "1";
  std::string device = "cpu";  // or "cuda"
  uint64_t hbm = uint64_t{64} << 20;
  uint64_t dram = uint64_t{256} << 20;
  uint64_t nvme = uint64_t{2} << 30;
  std::string dir;
  std::string policy = "lru";
  std::string engine = "auto";
  std::string profile;
  double write_amplification = TierManagerOptions::kDefaultWriteAmplification;
  uint64_t nvme_daily = 0;
  std::string key_file;
  bool no_checksums = false;
  std::string soak;
  uint64_t requests = 0;
  std::string json;
  bool reuse = false;
  std::string pace = "asap";
  bool skip_bad_lines = false;
  uint64_t flush_every = 64;
  std::string flush_log;
  std::string export_ops;
  uint64_t seed = 1;
  std::string timeline;
};

// An NVMe tier in host memory, as HBM is emulated.
constexpr absl::string_view kMemoryEngine = "memory";

// Names flags where Validate would name fields.
absl::Status CheckSizes(const ReplayArguments& arguments, uint64_t block_bytes) {
  constexpr uint64_t kMaxBlockBytes = uint64_t{1} << 30;
  if (block_bytes == 0 || !IsPageAligned(block_bytes) || block_bytes > kMaxBlockBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--block-bytes: ", block_bytes,
                                                   " is not a multiple of ", kPageBytes, " from ",
                                                   kPageBytes, " to ", kMaxBlockBytes));
  }
  if (arguments.hbm == 0 && arguments.dram == 0 && arguments.nvme == 0) {
    return absl::InvalidArgumentError(
        "--hbm, --dram and --nvme are all 0: at least one tier must hold a block");
  }
  for (const auto& [flag, bytes] :
       {std::pair("--hbm", arguments.hbm), std::pair("--dram", arguments.dram)}) {
    // Far above any machine's memory, and below what a slot number can count.
    constexpr uint64_t kMaxTierBytes = uint64_t{1} << 44;
    if (bytes > 0 && bytes < block_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(flag, ": ", bytes,
                                                     " is less than one block of ", block_bytes,
                                                     " bytes (0 means no such tier)"));
    }
    if (bytes > kMaxTierBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, ": ", bytes, " is more than the limit of ", kMaxTierBytes));
    }
  }
  if (arguments.nvme == 0) return absl::OkStatus();
  const absl::Status nvme = PlanNvmeGeometry(arguments.nvme, block_bytes).status();
  if (!nvme.ok()) return absl::InvalidArgumentError(absl::StrCat("--nvme: ", nvme.message()));
  if (arguments.dir.empty() && arguments.engine != kMemoryEngine) {
    return absl::InvalidArgumentError("--dir: needed when --nvme is not 0");
  }
  return absl::OkStatus();
}

absl::StatusOr<double> ParsePace(const std::string& text) {
  if (text == "asap") return 0.0;
  if (text == "trace") return 1.0;
  double factor = 0;
  // SimpleAtod also takes blanks and signs.
  const bool plain = text.starts_with('x') && text.find_first_not_of("0123456789.", 1) == text.npos;
  if (plain && absl::SimpleAtod(text.substr(1), &factor) && factor >= 1e-3 && factor <= 1e6) {
    return factor;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--pace: \"", text, "\" is not asap, trace or xN with N from 0.001 to 1000000"));
}

absl::StatusOr<ReplaySetup> MakeSetup(const ReplayArguments& arguments) {
  ReplaySetup setup;
  uint64_t block_bytes = arguments.block_bytes;
  if (!arguments.model_shape.empty()) {
    const absl::StatusOr<KvShape> shape = FindKvShape(arguments.model_shape);
    if (!shape.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--model-shape: ", shape.status().message()));
    }
    const absl::StatusOr<Scale> scale = ParseScale(arguments.scale);
    if (!scale.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--scale: ", scale.status().message()));
    }
    const absl::StatusOr<uint64_t> scaled =
        ScaledBytesPerBlock(*shape, arguments.tokens_per_block, *scale);
    if (!scaled.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--scale: ", scaled.status().message()));
    }
    block_bytes = *scaled;
    setup.model = absl::StrCat(shape->name, " (",
                               FormatByteSize(BytesPerBlock(*shape, arguments.tokens_per_block)),
                               " a block) at scale ", FormatScale(*scale));
  }
  const absl::Status sizes = CheckSizes(arguments, block_bytes);
  if (!sizes.ok()) return sizes;
  const absl::StatusOr<double> pace = ParsePace(arguments.pace);
  if (!pace.ok()) return pace.status();

  setup.tiers.block_bytes = block_bytes;
  if (arguments.device == "cuda") {
    if (arguments.hbm == 0) {
      return absl::InvalidArgumentError("--device: cuda with --hbm 0 has nothing on the device");
    }
    setup.tiers.hbm_device = HbmDevice::kCuda;
  }
  setup.tiers.hbm_bytes = arguments.hbm;
  setup.tiers.dram_bytes = arguments.dram;
  setup.tiers.nvme_bytes = arguments.nvme;
  setup.tiers.nvme_dir = arguments.dir;
  setup.tiers.reuse = arguments.reuse;
  // Blocks of another seed have other bytes, so a tier that holds them must not be reused.
  setup.tiers.model_fingerprint = arguments.seed;
  setup.in_memory = arguments.engine == kMemoryEngine;
  if (setup.in_memory && arguments.reuse) {
    return absl::InvalidArgumentError("--reuse: --engine memory leaves nothing to reuse");
  }
  if (arguments.no_checksums && !setup.in_memory) {
    return absl::InvalidArgumentError("--no-checksums: for measuring with --engine memory only");
  }
  setup.checksums = !arguments.no_checksums;
  if (!setup.in_memory) setup.tiers.engine = *ParseIoEngine(arguments.engine);
  setup.tiers.max_write_amplification = arguments.write_amplification;
  setup.tiers.nvme_write_bytes_per_day = arguments.nvme_daily;
  if (!arguments.key_file.empty() && arguments.nvme == 0) {
    return absl::InvalidArgumentError("--key-file: there is no NVMe tier to encrypt");
  }
  setup.key_file = arguments.key_file;
  if (!arguments.key_file.empty()) setup.replay.space = ReplaySetup::kSpace;
  if (!arguments.soak.empty()) {
    if (!absl::ParseDuration(arguments.soak, &setup.soak) || setup.soak <= absl::ZeroDuration() ||
        setup.soak == absl::InfiniteDuration()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--soak: \"", arguments.soak, "\" is not a duration such as 90s, 20m or 1h30m"));
    }
  }
  setup.tiers.policy = arguments.policy;
  setup.replay.seed = arguments.seed;
  setup.replay.flush_every = arguments.flush_every;
  setup.replay.flush_log = arguments.flush_log;
  setup.replay.export_ops = arguments.export_ops;
  setup.replay.pace = *pace;
  setup.trace.skip_bad_lines = arguments.skip_bad_lines;
  setup.trace.max_requests = arguments.requests;
  setup.trace_path = arguments.trace;
  setup.tokens_per_block = arguments.tokens_per_block;
  return setup;
}

absl::Status FollowProfile(const std::string& path, TierManagerOptions& tiers) {
  if (path.empty()) return absl::OkStatus();
  const absl::StatusOr<DeviceProfile> profile = ReadDeviceProfile(path);
  if (!profile.ok()) {
    return absl::Status(profile.status().code(),
                        absl::StrCat("--profile: ", profile.status().message()));
  }
  tiers.FollowProfile(*profile);
  return absl::OkStatus();
}

ExitCode Complain(const absl::Status& status, ExitCode code) {
  std::fprintf(stderr, "terrace replay: %s\n", std::string(status.message()).c_str());
  return code;
}

ExitCode RunCommand(const ReplayArguments& arguments) {
  absl::StatusOr<ReplaySetup> setup = MakeSetup(arguments);
  if (!setup.ok()) return Complain(setup.status(), ExitCode::kBadUsage);
  const absl::Status followed = FollowProfile(arguments.profile, setup->tiers);
  if (!followed.ok()) return Complain(followed, ExitCode::kFailure);
  std::vector<std::string> used = {arguments.trace, arguments.key_file, arguments.profile};
  if (!arguments.dir.empty()) used.push_back(TierFilePath(arguments.dir));
  OutputFile json("--json", arguments.json, used);
  if (!json.status().ok()) return Complain(json.status(), ExitCode::kFailure);
  used.push_back(arguments.json);
  TimelineFile timeline(arguments.timeline, used);
  if (!timeline.status().ok()) return Complain(timeline.status(), ExitCode::kFailure);
  setup->tiers.timeline = setup->replay.timeline = timeline.timeline();
  const absl::StatusOr<ReplayReport> report = RunReplay(*setup);
  if (!report.ok()) return Complain(report.status(), ExitCode::kFailure);
  const absl::Status printed = PrintText(ReplayText(*report));
  const absl::Status written = json.Write(JsonText(ReplayJson(*report)));
  const absl::Status drawn = timeline.Write();
  for (const absl::Status& status : {printed, written, drawn}) {
    if (!status.ok()) return Complain(status, ExitCode::kFailure);
  }
  if (report->result.corrupt_blocks > 0) {
    return Complain(absl::DataLossError(absl::StrCat(report->result.corrupt_blocks,
                                                     " blocks were served with wrong bytes")),
                    ExitCode::kFailure);
  }
  if (report->soak.lost_blocks + report->soak.missing_blocks > 0) {
    return Complain(
        absl::DataLossError(absl::StrCat(report->soak.lost_blocks, " blocks were lost and ",
                                         report->soak.missing_blocks, " missing after reopening")),
        ExitCode::kFailure);
  }
  if (report->result.interrupted) {
    return Complain(absl::CancelledError("interrupted by a signal"), ExitCode::kFailure);
  }
  return ExitCode::kSuccess;
}

void AddTierOptions(CLI::App& command, ReplayArguments& arguments) {
  AddByteSizeOption(command, "--block-bytes", arguments.block_bytes,
                    "Size of a block; a multiple of 4 KiB");
  command
      .add_option("--device", arguments.device,
                  "Where the HBM tier is: cpu emulates it in host memory, cuda takes a GPU's")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  AddByteSizeOption(command, "--hbm", arguments.hbm, "Capacity of the HBM tier; 0 for none");
  AddByteSizeOption(command, "--dram", arguments.dram, "Capacity of the DRAM tier; 0 for none");
  AddByteSizeOption(command, "--nvme", arguments.nvme,
                    "Capacity of the NVMe tier, everything in its file included; 0 for none");
  command
      .add_option("--dir", arguments.dir,
                  "Directory of the NVMe tier; its file stays there after the run")
      ->type_name("DIR");
  command.add_flag("--reuse", arguments.reuse,
                   "Serve what the directory holds from an earlier run; otherwise start empty");
  command.add_option("--policy", arguments.policy, "Eviction policy")
      ->check(CLI::IsMember({"lru"}));
  command
      .add_option("--engine", arguments.engine,
                  "I/O engine; memory emulates the NVMe tier in host memory")
      ->check(CLI::IsMember({"auto", "io_uring", "threads", "memory"}));
  command
      .add_option("--profile", arguments.profile,
                  "Read the NVMe tier as suits the disk that terrace ssd --profile measured")
      ->type_name("FILE");
  command
      .add_option("--max-write-amplification", arguments.write_amplification,
                  "Bytes written to NVMe for a byte that is new there; above 1, blocks that were "
                  "used are kept by writing them again when their segment is evicted")
      ->check(CLI::Validator(CheckNotNan, ""))
      ->check(CLI::Range(1.0, 8.0));
  AddByteSizeOption(command, "--nvme-daily", arguments.nvme_daily,
                    "Write so much to NVMe a day, for endurance; 0 for no limit");
  command
      .add_option("--key-file", arguments.key_file,
                  "Encrypt the blocks on NVMe with the 32 bytes in this file")
      ->type_name("FILE");
  command.add_flag("--no-checksums", arguments.no_checksums,
                   "With --engine memory: leave them out, to measure what they cost");
  command
      .add_option("--model-shape", arguments.model_shape,
                  "Take the block size from this model instead of --block-bytes")
      ->type_name("NAME");
  command
      .add_option("--scale", arguments.scale,
                  "With --model-shape: how much smaller the blocks are than the model's, as in "
                  "1/1024")
      ->type_name("FRACTION");
}

}  // namespace

void AddReplayCommand(CLI::App& app, std::function<ExitCode()>& run) {
  CLI::App* command = app.add_subcommand(
      "replay",
      "Replays a trace of requests through real tiers with real I/O, verifying every byte");
  command->option_defaults()->always_capture_default();
  auto arguments = std::make_shared<ReplayArguments>();
  command->add_option("--trace", arguments->trace, "Trace file, JSON lines")
      ->required()
      ->type_name("FILE");
  command->add_option("--format", arguments->format, "Format of the trace")
      ->check(CLI::IsMember({"mooncake"}));
  command
      ->add_option("--tokens-per-block", arguments->tokens_per_block, "Tokens a hash id stands for")
      ->check(CLI::Validator(CheckUnsigned, ""))
      ->check(CLI::Range(1u, 1u << 20));
  AddTierOptions(*command, *arguments);
  command->get_option("--scale")->needs("--model-shape");
  command->get_option("--model-shape")->excludes("--block-bytes");
  command->add_option("--requests", arguments->requests, "Stop after so many requests; 0 for all")
      ->check(CLI::Validator(CheckUnsigned, ""));
  command
      ->add_option("--pace", arguments->pace,
                   "When requests arrive: asap, trace (by their timestamps) or xN (N times faster)")
      ->type_name("PACE");
  command->add_flag("--skip-bad-lines", arguments->skip_bad_lines,
                    "Count bad trace lines and go on instead of failing");
  command
      ->add_option("--flush-every", arguments->flush_every,
                   "Make blocks durable after so many requests; 0 never")
      ->check(CLI::Validator(CheckUnsigned, ""));
  command
      ->add_option("--flush-log", arguments->flush_log,
                   "Append the hash ids that each flush made durable, one a line")
      ->type_name("FILE");
  command
      ->add_option("--export-ops", arguments->export_ops,
                   "Write the block operations as lines \"put ID\" and \"get ID ...\"")
      ->type_name("FILE");
  command
      ->add_option(
          "--soak", arguments->soak,
          "Replay again and again for so long (90s, 20m, 1h30m), closing and reopening the "
          "tiers in between; fails when a block is lost")
      ->type_name("DURATION");
  command->add_option("--seed", arguments->seed, "Seed of the block bytes")
      ->check(CLI::Validator(CheckUnsigned, ""));
  command->add_option("--json", arguments->json, "Write the result as JSON")->type_name("FILE");
  AddTimelineFlag(*command, arguments->timeline);
  command->callback([arguments, &run] { run = [arguments] { return RunCommand(*arguments); }; });
}

}  // namespace terrace
