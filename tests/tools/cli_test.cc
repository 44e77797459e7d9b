// The program from outside: exit codes, messages, and which stream they go to.

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::Not;

constexpr char kGood[] =
    R"({"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]})"
    "\n";

class CliTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(dir_.Join(name), std::ios::binary) << content;
    return dir_.Join(name);
  }

  // Replays a trace through a small DRAM tier alone, unless `more` says otherwise.
  RunResult Replay(const std::string& trace, const Arguments& more = {},
                   const RunOptions& options = {}) const {
    const Arguments flags = WithDefaults(more, {{"--block-bytes", "4KiB"},
                                                {"--hbm", "0"},
                                                {"--dram", "1MiB"},
                                                {"--nvme", "0"},
                                                {"--json", json_path_}});
    Arguments arguments = {"replay", "--trace", trace};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments, options);
  }
  RunResult ReplayText(const std::string& content, const Arguments& more = {}) const {
    return Replay(Write("trace.jsonl", content), more);
  }
  nlohmann::json Json() const {
    std::ifstream file(json_path_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }

  const TempDir dir_;
  const std::string json_path_ = dir_.Join("result.json");
  const std::string good_ = Write("good.jsonl", kGood);
};

void ExpectFailure(const RunResult& run, int exit_code, const std::vector<std::string>& parts) {
  EXPECT_EQ(run.exit_code, exit_code) << run.err << "signal " << run.signal;
  EXPECT_THAT(run.out, IsEmpty());
  for (const std::string& part : parts) EXPECT_THAT(run.err, HasSubstr(part));
  EXPECT_LT(run.err.size(), 1000) << "a sentence, not a flood";
}

// --- Help ---

TEST_F(CliTest, HelpOfEveryCommandListsEveryFlag) {
  const std::vector<std::pair<Arguments, Arguments>> flags_of = {
      {{}, {"--version", "replay", "gentrace", "ssd", "generate", "eval", "pack"}},
      {{"replay"}, {"--trace",          "--format",      "--tokens-per-block",
                    "--block-bytes",    "--hbm",         "--dram",
                    "--nvme",           "--dir",         "--policy",
                    "--requests",       "--json",        "--reuse",
                    "--pace",           "--model-shape", "--scale",
                    "--skip-bad-lines", "--engine",      "--flush-every",
                    "--flush-log",      "--export-ops",  "--seed"}},
      {{"ssd"},
       {"--dir", "--file", "--size", "--block-bytes", "--depth", "--op", "--seconds", "--warmup",
        "--engine", "--force", "--seed", "--json", "--profile", "--plot"}},
      {{"gentrace"},
       {"--out", "--requests", "--seed", "--tokens-per-block", "--concurrent-sessions",
        "--mean-turns", "--system-prompts", "--mean-system-tokens", "--mean-turn-tokens",
        "--mean-output-tokens", "--requests-per-second", "--max-input-tokens"}},
      {{"generate"},
       {"--model",
        "--prompt",
        "--prompt-file",
        "--tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--seed",
        "--policy",
        "--tokens-per-block",
        "--sinks",
        "--window",
        "--lookup-blocks",
        "--representatives",
        "--page-tokens",
        "--kv-dtype",
        "--hbm",
        "--dram",
        "--nvme",
        "--dir",
        "--engine",
        "--threads",
        "--reuse",
        "--load",
        "--save",
        "--json",
        "--weights",
        "--weights-dram",
        "--predictor",
        "--weights-window",
        "--weights-prefetch"}},
      {{"eval"},
       {"--model",
        "--text",
        "--policy",
        "--perplexity",
        "--perplexity-window",
        "--perplexity-stride",
        "--perplexity-windows",
        "--perplexity-step",
        "--needles",
        "--lengths",
        "--depths",
        "--keys",
        "--seed",
        "--share",
        "--dram",
        "--nvme",
        "--dir",
        "--json",
        "--plot",
        "--weights",
        "--weights-dram",
        "--predictor",
        "--weights-window"}},
      {{"pack"},
       {"--model", "--out", "--dtype", "--layout", "--gate-first", "--group-neurons", "--calibrate",
        "--calibrate-tokens", "--rank", "--false-negatives", "--keep-order", "--inspect",
        "--verify", "--json"}},
  };
  for (const auto& [command, flags] : flags_of) {
    for (const char* help : {"--help", "-h"}) {
      Arguments arguments = command;
      arguments.push_back(help);
      const RunResult run = RunTerrace(arguments);
      EXPECT_EQ(run.exit_code, 0);
      EXPECT_THAT(run.err, IsEmpty());
      for (const std::string& flag : flags) EXPECT_THAT(run.out, HasSubstr(flag));
    }
  }
}

TEST_F(CliTest, VersionIsOneLine) {
  const RunResult run = RunTerrace({"--version"});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out, MatchesRegex("terrace [0-9]+\\.[0-9]+\\.[0-9]+\n"));
  EXPECT_THAT(run.err, IsEmpty());
}

// --- Bad usage ---

TEST_F(CliTest, UnknownCommandsAndFlagsAreNamed) {
  ExpectFailure(RunTerrace({}), 2, {"subcommand is required"});
  ExpectFailure(RunTerrace({"reply"}), 2, {"reply: no such command"});
  ExpectFailure(RunTerrace({"--frobnicate"}), 2, {"--frobnicate"});
  ExpectFailure(Replay(good_, {"--frobnicate"}), 2, {"--frobnicate"});
  ExpectFailure(Replay(good_, {"stray"}), 2, {"stray"});
  ExpectFailure(RunTerrace({"replay"}), 2, {"--trace"});
  ExpectFailure(RunTerrace({"replay", "--trace", good_, "--dir"}), 2, {"--dir"});
  ExpectFailure(RunTerrace({"gentrace"}), 2, {"--out"});
  ExpectFailure(RunTerrace({"gentrace", "--out", "-", "--requests", "-1"}), 2, {"--requests"});
}

TEST_F(CliTest, BadValuesNameTheFlagAndTheLimit) {
  const std::string block = "--block-bytes";
  const std::string dir = dir_.path();
  const std::vector<std::pair<Arguments, std::vector<std::string>>> cases = {
      {{block, "5000"}, {"--block-bytes: 5000 is not a multiple of 4096"}},
      {{block, "0"}, {block, "4096"}},
      {{block, "2GiB"}, {block, "1073741824"}},
      {{block, "-4k"}, {block}},
      {{block, "4Q"}, {block, "4Q"}},
      {{block, ""}, {block}},
      {{block, "99999999999999999999"}, {block}},
      {{"--hbm", "4095"}, {"--hbm: 4095 is less than one block of 4096"}},
      {{"--dram", "1"}, {"--dram: 1 is less than one block of 4096"}},
      {{"--hbm", "17TiB"}, {"--hbm", "limit"}},
      {{"--dram", "0"}, {"--hbm, --dram and --nvme are all 0"}},
      {{"--nvme", "1MiB"}, {"--dir: needed"}},
      {{"--nvme", "4KiB", "--dir", dir}, {"--nvme", "needs at least 49152"}},
      {{"--nvme", "17TiB", "--dir", dir}, {"--nvme", "limit"}},
      {{"--policy", "belady"}, {"--policy", "belady", "lru"}},
      {{"--engine", "floppy"}, {"--engine", "floppy", "io_uring"}},
      {{"--engine", "memory", "--reuse"}, {"--reuse"}},
      {{"--no-checksums"}, {"--no-checksums", "memory"}},
      {{"--soak", "soon"}, {"--soak", "soon", "20m"}},
      {{"--max-write-amplification", "9"}, {"--max-write-amplification"}},
      {{"--max-write-amplification", "nan"}, {"--max-write-amplification", "nan"}},
      {{"--format", "csv"}, {"--format", "csv", "mooncake"}},
      {{"--tokens-per-block", "0"}, {"--tokens-per-block", "1048576"}},
      {{"--tokens-per-block", "-512"}, {"--tokens-per-block", "-512"}},
      {{"--requests", "-1"}, {"--requests", "-1"}},
      {{"--requests", ""}, {"--requests: is empty"}},
      {{"--requests", "1.5"}, {"--requests", "1.5"}},
      {{"--requests", "18446744073709551616"}, {"--requests", "18446744073709551616"}},
      {{"--flush-every", "-1"}, {"--flush-every", "-1"}},
      {{"--seed", "-1"}, {"--seed", "-1"}},
      {{"--seed", "99999999999999999999"}, {"--seed", "2^64 - 1"}},
      {{"--scale", "1/2"}, {"--scale", "--model-shape"}},
      {{"--model-shape", "llama-3.1-8b"}, {"--model-shape", "--block-bytes"}},
  };
  for (const auto& [flags, parts] : cases) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    ExpectFailure(Replay(good_, flags), 2, parts);
  }
  // Bad usage is known before anything is opened, not even the result file.
  EXPECT_NE(access(json_path_.c_str(), F_OK), 0);
}

TEST_F(CliTest, BadPacesAreRefused) {
  for (const char* pace :
       {"", "fast", "x", "x0", "x-1", "xnan", "xinf", "x1e3", "x1e9", "1", "X2", "x1 "}) {
    ExpectFailure(Replay(good_, {"--pace", pace}), 2, {"--pace", "asap, trace or xN"});
  }
  for (const char* pace : {"asap", "trace", "x1000", "x0.5"}) {
    EXPECT_EQ(Replay(good_, {"--pace", pace}).exit_code, 0) << pace;
  }
}

TEST_F(CliTest, ModelShapesSetTheBlockSizeAndTheReportSaysBoth) {
  const auto replay = [this](const Arguments& more) {
    Arguments arguments = {"replay", "--trace", good_, "--hbm",  "0",       "--dram",
                           "64MiB",  "--nvme",  "0",   "--json", json_path_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunTerrace(arguments);
  };
  const RunResult run = replay({"--model-shape", "llama-3.1-8b", "--scale", "1/1024"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(Json()["block_bytes"], 65536);
  for (const std::string& text : {run.out, Json()["model"].get<std::string>()}) {
    EXPECT_THAT(text, AllOf(HasSubstr("llama-3.1-8b"), HasSubstr("64 MiB"), HasSubstr("1/1024")));
  }
  EXPECT_EQ(replay({"--model-shape", "llama-3.1-8b"}).exit_code, 0);
  EXPECT_EQ(Json()["block_bytes"], 64 << 20);
  ExpectFailure(replay({"--model-shape", "llama-9"}), 2, {"--model-shape", "llama-3.1-8b"});
  for (const char* scale : {"1/3", "0", "2", "1/0", "-1/2", "1/", "x", "1/99999999999999999999"}) {
    ExpectFailure(replay({"--model-shape", "llama-3.1-8b", "--scale", scale}), 2, {"--scale"});
  }
}

// --- Bad traces ---

TEST_F(CliTest, BadTraceLinesAreNamedByFileLineAndField) {
  const auto with = [](absl::string_view field, absl::string_view value) {
    std::string line = "{";
    for (absl::string_view name : {"timestamp", "input_length", "output_length", "hash_ids"}) {
      const absl::string_view good = name == "hash_ids" ? "[1, 2]" : "10";
      absl::StrAppend(&line, line.size() > 1 ? ", " : "", "\"", name,
                      "\": ", name == field ? value : good);
    }
    return line + "}\n";
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {with("input_length", "-5"), "field \"input_length\" is -5"},
      {with("input_length", "1.5"), "field \"input_length\" is 1.5"},
      {with("output_length", "99999999999"), "field \"output_length\" is 99999999999"},
      {with("timestamp", "\"now\""), "field \"timestamp\" is a string"},
      {with("timestamp", "1e400"), "timestamp"},
      {with("hash_ids", "[1, -2]"), "field \"hash_ids\": element 1 is -2"},
      {with("hash_ids", "[1, 2.5]"), "field \"hash_ids\": element 1 is 2.5"},
      {with("hash_ids", "[99999999999999999999]"), "hash_ids"},
      {with("hash_ids", "null"), "field \"hash_ids\" is null"},
      {"{\"timestamp\": 1, \"input_length\": 2, \"output_length\": 3}\n",
       "field \"hash_ids\" is missing"},
      {"{\"timestamp\": 1, \"input_le", "truncated"},
      {"not json\n", "expected a JSON object"},
      {"[]\n", "expected a JSON object"},
      {"\n" + std::string(kGood), "blank"},
      {std::string("{\"timestamp\": \0 1}\n", 19), "NUL"},
  };
  for (const auto& [line, what] : cases) {
    SCOPED_TRACE(line);
    const RunResult run = ReplayText(absl::StrCat(kGood, kGood, line));
    ExpectFailure(run, 1, {absl::StrCat(dir_.Join("trace.jsonl"), ":3: "), what});
    EXPECT_EQ(run.err.find('\n'), run.err.size() - 1) << "one line";

    const RunResult skipping =
        ReplayText(absl::StrCat(kGood, kGood, line, "\n"), {"--skip-bad-lines"});
    EXPECT_EQ(skipping.exit_code, 0) << skipping.err;
    EXPECT_GE(Json()["skipped_lines"], 1);
    EXPECT_GE(Json()["requests"], 2);
    EXPECT_THAT(skipping.out, HasSubstr("1 bad trace lines were skipped"));
  }
}

TEST_F(CliTest, TraceFilesThatAreNoTracesAreNamed) {
  ExpectFailure(Replay(dir_.Join("absent")), 1, {dir_.Join("absent"), "No such file"});
  ExpectFailure(Replay(dir_.path()), 1, {dir_.path(), "is a directory"});
  ExpectFailure(Replay(""), 1, {"cannot open"});
  ExpectFailure(ReplayText(""), 1, {dir_.Join("trace.jsonl"), "holds no requests"});
  ExpectFailure(ReplayText("\xef\xbb\xbf"), 1, {"holds no requests"});
  ExpectFailure(ReplayText("bad\nworse\n", {"--skip-bad-lines"}), 1, {"2 bad lines skipped"});
  ExpectFailure(ReplayText("\x1f\x8b\x08\x00 etc"), 1, {"gzip-compressed"});
}

TEST_F(CliTest, LongLinesByteOrderMarksAndCrLfAreFine) {
  std::string ids = "1";
  while (ids.size() < 10u << 20) absl::StrAppend(&ids, ", 123456");
  const std::string long_line = absl::StrCat(
      "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [", ids, "]}\n");
  EXPECT_EQ(ReplayText(absl::StrCat(kGood, long_line)).exit_code, 0);
  EXPECT_GT(Json()["block_refs"], 1'000'000);
  EXPECT_EQ(Json()["corrupt_blocks"], 0);

  const std::string long_junk = absl::StrCat(std::string(10u << 20, 'x'), "\n");
  ExpectFailure(ReplayText(absl::StrCat(kGood, long_junk)), 1, {":2: "});
  ExpectFailure(ReplayText(absl::StrCat(kGood, std::string(10u << 20, '['), "\n")), 1, {":2: "});

  const std::string body(kGood, sizeof(kGood) - 2);
  EXPECT_EQ(ReplayText(absl::StrCat("\xef\xbb\xbf", body, "\r\n", body, "\r\n\r\n")).exit_code, 0);
  EXPECT_EQ(Json()["requests"], 2);
  EXPECT_EQ(ReplayText(body).exit_code, 0);
  EXPECT_EQ(Json()["requests"], 1);
}

TEST_F(CliTest, RequestsLimitsHowManyAreReplayed) {
  const std::string trace = absl::StrCat(kGood, kGood, kGood, "beyond the limit\n");
  EXPECT_EQ(ReplayText(trace, {"--requests", "2"}).exit_code, 0);
  EXPECT_EQ(Json()["requests"], 2);
  EXPECT_EQ(Json()["block_refs"], 4);
  EXPECT_EQ(Json()["reused_blocks"], 2);
  ExpectFailure(ReplayText(trace, {"--requests", "4"}), 1, {":4: "});
  ExpectFailure(ReplayText(trace, {"--requests", "0"}), 1, {":4: "});
  EXPECT_EQ(Replay(good_, {"--requests", "100"}).exit_code, 0);
  EXPECT_EQ(Json()["requests"], 1);
}

// --- Places that cannot be written ---

TEST_F(CliTest, BadDirectoriesAreNamed) {
  const auto replay = [&](const std::string& dir) {
    return Replay(good_, {"--nvme", "1MiB", "--dir", dir});
  };
  ExpectFailure(replay(dir_.Join("absent")), 1, {dir_.Join("absent"), "No such file"});
  ExpectFailure(replay(good_), 1, {good_, "Not a directory"});
  ExpectFailure(replay("/proc"), 1, {"/proc"});
}

TEST_F(CliTest, ADirectoryWithoutWritePermissionIsNamed) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write to every directory";
  const std::string locked = dir_.Join("locked");
  ASSERT_EQ(mkdir(locked.c_str(), 0500), 0);
  ExpectFailure(Replay(good_, {"--nvme", "1MiB", "--dir", locked}), 1,
                {locked, "Permission denied"});
}

TEST_F(CliTest, BadResultAndLogPathsAreNamed) {
  const std::string absent = dir_.Join("absent/file");
  ExpectFailure(Replay(good_, {"--json", absent}), 1, {"--json", absent, "No such file"});
  const std::string tier = dir_.Join("tier");
  ASSERT_EQ(mkdir(tier.c_str(), 0700), 0);
  for (const std::string& path : {absent, dir_.path()}) {
    ExpectFailure(Replay(good_, {"--nvme", "1MiB", "--dir", tier, "--flush-log", path}), 1,
                  {"flush log", path});
  }
  ExpectFailure(RunTerrace({"gentrace", "--requests", "5", "--out", absent}), 1, {absent});
}

TEST_F(CliTest, OutputThatCannotBeWrittenIsAFailure) {
  const RunResult lost_json = Replay(good_, {"--json", "/dev/full"});
  EXPECT_EQ(lost_json.exit_code, 1);
  EXPECT_THAT(lost_json.err, AllOf(HasSubstr("--json /dev/full"), HasSubstr("No space left")));

  RunOptions full;
  full.stdout_path = "/dev/full";
  const RunResult lost_table = Replay(good_, {}, full);
  EXPECT_EQ(lost_table.exit_code, 1);
  EXPECT_THAT(lost_table.err, AllOf(HasSubstr("standard output"), HasSubstr("No space left")));
  EXPECT_EQ(Json()["requests"], 1) << "the result file is written all the same";
}

// A file that got the number of a closed stream would be overwritten with what goes to the stream.
TEST_F(CliTest, ClosedStandardStreamsDoNoHarm) {
  const std::string tier = dir_.Join("tier");
  ASSERT_EQ(mkdir(tier.c_str(), 0700), 0);
  for (int mask = 0; mask < 8; ++mask) {
    RunOptions options;
    options.close_stdin = (mask & 1) != 0;
    options.close_stdout = (mask & 2) != 0;
    options.close_stderr = (mask & 4) != 0;
    const Arguments nvme = {"--nvme", "1MiB", "--dir", tier};
    EXPECT_EQ(Replay(good_, nvme, options).exit_code, 0);
    EXPECT_EQ(Json()["requests"], 1);
    // A failure has something to say on standard error.
    EXPECT_EQ(Replay(dir_.Join("absent"), nvme, options).exit_code, 1);
    EXPECT_EQ(Replay(good_, {"--nvme", "1MiB", "--dir", tier, "--reuse"}).exit_code, 0);
    EXPECT_EQ(Json()["reused_blocks"], 2) << "the tier is as the first run left it";
  }
}

}  // namespace
}  // namespace terrace
