#include "tools/gentrace.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;
constexpr uint64_t kNanosecondsPerMillisecond = 1'000'000;
constexpr uint64_t kOne32 = uint64_t{1} << 32;  // probability 1 in units of 2^-32

uint64_t RotateLeft(uint64_t value, int bits) { return std::rotl(value, bits); }

// One step of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
// OOPSLA 2014), the seeding that xoshiro's authors recommend.
uint64_t SplitMix64(uint64_t& state) {
  state += 0x9e3779b97f4a7c15;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// log2(value) in units of 2^-24, rounded down, by repeated squaring. REQUIRES: value > 0.
uint64_t Log2Fixed(uint64_t value) {
  constexpr int kFractionBits = 24;
  const int whole = std::bit_width(value) - 1;
  uint64_t mantissa = (value << (63 - whole)) >> 32;  // in [1, 2), units of 2^-31
  uint64_t log = static_cast<uint64_t>(whole);
  for (int i = 0; i < kFractionBits; ++i) {
    mantissa = (mantissa * mantissa) >> 31;
    const uint64_t bit = mantissa >> 32;
    mantissa >>= bit;
    log = (log << 1) | bit;
  }
  return log;
}

struct IntegerLimit {
  const char* flag;
  uint64_t value;
  uint64_t low;
  uint64_t high;
};

absl::Status CheckInteger(const IntegerLimit& limit) {
  if (limit.value >= limit.low && limit.value <= limit.high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(limit.flag, " is ", limit.value, ", expected ", limit.low, " to ", limit.high));
}

struct RealLimit {
  const char* flag;
  double value;
  double low;
  double high;
};

absl::Status CheckReal(const RealLimit& limit) {
  // NaN fails both comparisons.
  if (limit.value >= limit.low && limit.value <= limit.high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(limit.flag, " is ", limit.value, ", expected ", limit.low, " to ", limit.high));
}

}  // namespace

absl::Status GentraceOptions::Validate() const {
  constexpr uint64_t kMaxInputTokens = uint64_t{1} << 24;
  const IntegerLimit integers[] = {
      {"--requests", requests, 1, 100'000'000},
      {"--tokens-per-block", tokens_per_block, 16, 65536},
      {"--concurrent-sessions", concurrent_sessions, 1, 65536},
      {"--system-prompts", system_prompts, 1, 10'000},
      {"--max-input-tokens", max_input_tokens, 1, kMaxInputTokens},
      {"--mean-system-tokens", mean_system_tokens, 0, max_input_tokens},
      {"--mean-turn-tokens", mean_turn_tokens, 1, max_input_tokens},
      {"--mean-output-tokens", mean_output_tokens, 1, kMaxInputTokens},
  };
  for (const IntegerLimit& limit : integers) {
    if (absl::Status status = CheckInteger(limit); !status.ok()) return status;
  }
  const RealLimit reals[] = {
      {"--mean-turns", mean_turns, 1, 1000},
      // The lower limit keeps the mean gap within what TraceRandom::Exponential takes.
      {"--requests-per-second", requests_per_second, 0.1, 1e6},
  };
  for (const RealLimit& limit : reals) {
    if (absl::Status status = CheckReal(limit); !status.ok()) return status;
  }
  return absl::OkStatus();
}

double GentraceSummary::ideal_reuse() const {
  if (block_refs == 0) return 0;
  return static_cast<double>(block_refs - distinct_blocks) / static_cast<double>(block_refs);
}

TraceRandom::TraceRandom(uint64_t seed) {
  for (uint64_t& word : state_) word = SplitMix64(seed);
}

uint64_t TraceRandom::Next() {
  const uint64_t result = RotateLeft(state_[1] * 5, 7) * 9;
  const uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = RotateLeft(state_[3], 45);
  return result;
}

uint64_t TraceRandom::Below(uint64_t bound) { return ((Next() >> 32) * bound) >> 32; }

uint64_t TraceRandom::Exponential(uint64_t mean) {
  constexpr uint64_t kLn2 = 45426;  // units of 2^-16
  // -log2 of a uniform number in (0, 1]: at most 64, so below 2^30 + 1 in units of 2^-24.
  const uint64_t log2 = (uint64_t{64} << 24) - Log2Fixed(std::max<uint64_t>(Next(), 1));
  const uint64_t log = (log2 * kLn2) >> 16;  // below 2^30, which leaves 34 bits for the mean
  return (log * mean) >> 24;
}

absl::StatusOr<TraceGenerator> TraceGenerator::Create(const GentraceOptions& options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  return TraceGenerator(options);
}

TraceGenerator::TraceGenerator(const GentraceOptions& options)
    : options_(options),
      mean_gap_ns_(static_cast<uint64_t>(kNanosecondsPerSecond / options.requests_per_second)),
      end_threshold_(static_cast<uint64_t>(kOne32 / options.mean_turns)),
      random_(options.seed),
      sessions_(options.concurrent_sessions) {
  // 10,000 prompts keep the smallest weight above 100 and the sum below 2^32.
  constexpr uint64_t kTopWeight = uint64_t{1} << 20;
  uint64_t popularity = 0;
  for (uint64_t rank = 1; rank <= options.system_prompts; ++rank) {
    SystemPrompt prompt;
    prompt.tokens = std::min<uint64_t>(random_.Exponential(options.mean_system_tokens),
                                       options.max_input_tokens / 2);
    popularity += kTopWeight / rank;
    prompt.popularity_end = popularity;
    system_prompts_.push_back(std::move(prompt));
  }
}

TraceGenerator::SystemPrompt& TraceGenerator::PickSystemPrompt() {
  const uint64_t point = random_.Below(system_prompts_.back().popularity_end);
  return *std::upper_bound(
      system_prompts_.begin(), system_prompts_.end(), point,
      [](uint64_t value, const SystemPrompt& prompt) { return value < prompt.popularity_end; });
}

void TraceGenerator::Begin(Session& session) {
  SystemPrompt& prompt = PickSystemPrompt();
  while (prompt.block_ids.size() < prompt.tokens / options_.tokens_per_block) {
    prompt.block_ids.push_back(next_block_id_++);
  }
  session.begun = true;
  session.tokens = prompt.tokens;
  session.block_ids = prompt.block_ids;
}

// Documents and logs that people paste make the long tail of real prompts: one text in eight has
// five times the mean, the others three sevenths of it, and 1/8 * 5 + 7/8 * 3/7 = 1.
uint64_t TraceGenerator::TurnTokens() {
  const uint64_t mean = options_.mean_turn_tokens;
  const bool is_long = random_.Below(8) == 0;
  return 1 + random_.Exponential(is_long ? 5 * mean : 3 * mean / 7);
}

void TraceGenerator::Next(TraceLine& request) {
  now_ns_ += random_.Exponential(mean_gap_ns_);
  // A place that is taken at random and, with a fixed chance, given to somebody new has sessions of
  // geometric length whose turns are spread among those of all the others.
  Session& session = sessions_[random_.Below(sessions_.size())];
  const uint64_t text_tokens = TurnTokens();
  const bool ended = random_.Below(kOne32) < end_threshold_;
  if (!session.begun || ended || session.tokens + text_tokens > options_.max_input_tokens) {
    Begin(session);
  }
  session.tokens = std::min<uint64_t>(session.tokens + text_tokens, options_.max_input_tokens);
  while (session.block_ids.size() < session.tokens / options_.tokens_per_block) {
    session.block_ids.push_back(next_block_id_++);
  }

  request.timestamp_ms = static_cast<int64_t>(now_ns_ / kNanosecondsPerMillisecond);
  request.input_length = static_cast<uint32_t>(session.tokens);
  request.hash_ids = session.block_ids;
  if (session.tokens % options_.tokens_per_block != 0) {
    request.hash_ids.push_back(next_block_id_++);
  }
  const uint64_t output_tokens =
      std::min<uint64_t>(1 + random_.Exponential(options_.mean_output_tokens), kMaxTraceTokens);
  request.output_length = static_cast<uint32_t>(output_tokens);
  session.tokens += output_tokens;

  ++summary_.requests;
  summary_.block_refs += request.hash_ids.size();
  summary_.distinct_blocks = next_block_id_;
}

}  // namespace terrace
