#ifndef TERRACE_TOOLS_GENTRACE_H_
#define TERRACE_TOOLS_GENTRACE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/trace.h"

namespace terrace {

// A chat service: people hold sessions of several turns, each session starts with one of a few
// shared system prompts, and each turn sends the whole conversation so far plus new text.
struct GentraceOptions {
  uint64_t requests = 2000;
  uint64_t seed = 1;
  uint32_t tokens_per_block = 512;
  uint32_t concurrent_sessions = 256;  // open at once; sets how far apart a session's turns are
  double mean_turns = 2.3;             // of a session, geometric
  uint32_t system_prompts = 32;        // the k-th most popular is used in proportion to 1/k
  uint32_t mean_system_tokens = 1500;
  uint32_t mean_turn_tokens = 5200;  // new user text; most texts are short, one in eight is long
  uint32_t mean_output_tokens = 350;
  double requests_per_second = 3.0;    // arrivals are a Poisson process
  uint32_t max_input_tokens = 128000;  // a session that would exceed it ends

  // kInvalidArgument naming the flag of `terrace gentrace` and its limits.
  absl::Status Validate() const;
};

struct GentraceSummary {
  uint64_t requests = 0;
  uint64_t block_refs = 0;
  uint64_t distinct_blocks = 0;
  // Share of references that find their block in a cache without limits; 0 before any request.
  double ideal_reuse() const;
};

// xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2018) seeded
// by splitmix64, with integer-only distributions: the standard library's, and libm, differ between
// platforms. Thread-compatible.
class TraceRandom {
 public:
  explicit TraceRandom(uint64_t seed);

  uint64_t Next();
  // Uniform in [0, bound), but for a bias of bound / 2^32. REQUIRES: 1 <= bound <= 2^32.
  uint64_t Below(uint64_t bound);
  // Exponentially distributed, rounded down. REQUIRES: mean < 2^34.
  uint64_t Exponential(uint64_t mean);

 private:
  uint64_t state_[4];
};

// Makes such a workload request by request, so that a trace of any length takes the memory of its
// open sessions. Equal options give equal requests on every platform. Full blocks keep their id for
// the rest of the session; the partial block at the end of a prompt has an id of its own, since its
// tokens are not yet those of the block that it will become. Ids count up from 0 in order of first
// appearance. Thread-compatible.
class TraceGenerator {
 public:
  // The error of GentraceOptions::Validate.
  static absl::StatusOr<TraceGenerator> Create(const GentraceOptions& options);

  // Overwrites `request` with the next one. Never runs out; options.requests is for the caller.
  void Next(TraceLine& request);

  // Of all requests so far.
  const GentraceSummary& summary() const { return summary_; }

 private:
  struct SystemPrompt {
    uint64_t tokens = 0;
    uint64_t popularity_end = 0;      // running sum of popularity weights
    std::vector<uint64_t> block_ids;  // of its full blocks; empty until first used
  };
  struct Session {
    bool begun = false;
    uint64_t tokens = 0;              // of the conversation, last answer included
    std::vector<uint64_t> block_ids;  // of the full blocks sent so far
  };

  explicit TraceGenerator(const GentraceOptions& options);
  SystemPrompt& PickSystemPrompt();
  void Begin(Session& session);
  uint64_t TurnTokens();

  GentraceOptions options_;
  uint64_t mean_gap_ns_;
  uint64_t end_threshold_;  // of 2^32: chance that a session ends after a turn
  TraceRandom random_;
  std::vector<SystemPrompt> system_prompts_;
  std::vector<Session> sessions_;
  uint64_t now_ns_ = 0;
  uint64_t next_block_id_ = 0;
  GentraceSummary summary_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_GENTRACE_H_
