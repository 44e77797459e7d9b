#include "tools/index_eval/synthetic_head.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

// Standard deviations, by dimension. With them, heads of 131,072 keys x 128 are as
// RetrievalAttention (arXiv 2409.10516, section 2) measured those of models on as long contexts:
// - the best 1,000 keys of a query have 0.89 of its mass or so, which the size of queries decides;
// - for 0.95 of the 100 best keys, IVF with up to 8,192 lists scans a third of the keys or so if
//   queries look for them, and 2 % if keys do, which the size of what is outside decides;
// - queries are more than ten times as far from the keys as keys are, in squared Mahalanobis
//   distance.
constexpr float kTopicCentre = 0.475f;
constexpr float kSlowPart = 0.275f;
constexpr float kOwnPart = 0.45f;
constexpr float kStyleCentre = 0.75f;
constexpr float kOutsideNoise = 0.75f;
constexpr float kOffset = 0.5f;

constexpr float kQueryOffset = 7.15f;
constexpr float kQueryTopic = 8.8f;
constexpr float kQueryDrift = 3.85f;
constexpr float kQueryOwn = 4.95f;
constexpr float kQueryOutside = 0.41f;  // queries are not quite in their subspace

constexpr float kKeyPersistence = 0.95f;    // of the slow part, from token to token
constexpr float kDriftPersistence = 0.98f;  // from query to query of one head
constexpr uint64_t kMeanWantedSteps = 12;   // that a head wants the same topic
constexpr float kMaxTopicSize = 2.2f;

constexpr float kValueTopic = 0.7f;

// xoshiro256** (Blackman and Vigna, 2018) seeded by splitmix64; normal numbers as sums of uniform
// ones, since a head takes tens of millions of them. Thread-compatible.
class HeadRandom {
 public:
  explicit HeadRandom(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
      z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
      word = z ^ (z >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }
  size_t Below(size_t bound) { return static_cast<size_t>((Next() >> 32) * bound >> 32); }
  // Ends a run of this mean length.
  bool Ends(uint64_t mean) { return Below(mean) == 0; }
  // Uniform in (0, 1].
  float Uniform() { return static_cast<float>((Next() >> 40) + 1) * 0x1p-24f; }
  // Nearly standard normal: the sum of four uniform numbers of 16 bits.
  float Normal() {
    const uint64_t bits = Next();
    const auto sum = static_cast<int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) +
                                          (bits >> 32 & 0xffff) + (bits >> 48));
    constexpr float kMean = 4 * 65535 / 2.0f;
    constexpr float kDeviation = 37836.8f;  // 65536 * sqrt(4 / 12)
    return (static_cast<float>(sum) - kMean) / kDeviation;
  }
  void Normals(float deviation, absl::Span<float> values) {
    for (float& value : values) value = deviation * Normal();
  }

 private:
  uint64_t state_[4];
};

using Floats = std::vector<float>;

float Dot(absl::Span<const float> a, absl::Span<const float> b) {
  float sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void AddScaled(float scale, absl::Span<const float> from, absl::Span<float> to) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += scale * from[i];
}

// Makes one head. The query space has an orthonormal basis, of which the first `shared_dims` are in
// the subspace of every head and the following ones, head after head, in that of one.
class HeadMaker {
 public:
  explicit HeadMaker(const SyntheticHeadOptions& options)
      : options_(options),
        dim_(options.head_dim),
        own_dims_(options.query_dims - options.shared_dims),
        space_(options.shared_dims + options.group * own_dims_),
        random_(options.seed) {}

  std::optional<SyntheticHead> Make() {
    MakeBasis();
    MakeCentres();
    SyntheticHead head;
    head.head_dim = dim_;
    head.group = options_.group;
    if (!MakeKeys(head)) return std::nullopt;
    MakeQueries(head);
    return head;
  }

 private:
  absl::Span<const float> Basis(size_t i) const { return {basis_.data() + i * dim_, dim_}; }
  // The dimension of the query space that is number i of the head's subspace.
  size_t SpaceDim(size_t head, size_t i) const {
    return i < options_.shared_dims ? i : i + head * own_dims_;
  }

  // Gram and Schmidt on random vectors, twice for rounding.
  void MakeBasis() {
    basis_.resize(space_ * dim_);
    random_.Normals(1, absl::MakeSpan(basis_));
    for (size_t i = 0; i < space_; ++i) {
      const absl::Span<float> row(basis_.data() + i * dim_, dim_);
      for (int pass = 0; pass < 2; ++pass) {
        for (size_t j = 0; j < i; ++j) AddScaled(-Dot(row, Basis(j)), Basis(j), row);
      }
      const float norm = std::sqrt(Dot(row, row));
      for (float& x : row) x /= norm;
    }
  }

  void RemoveQuerySpace(absl::Span<float> vector) const {
    for (size_t i = 0; i < space_; ++i) AddScaled(-Dot(vector, Basis(i)), Basis(i), vector);
  }

  void MakeCentres() {
    topics_.resize(options_.topics * space_);
    for (size_t topic = 0; topic < options_.topics; ++topic) {
      // 1 / sqrt(u) has the tail of a Pareto distribution with exponent 2.
      const float size = std::min(0.7f / std::sqrt(random_.Uniform()), kMaxTopicSize);
      random_.Normals(kTopicCentre * size, {topics_.data() + topic * space_, space_});
    }
    topic_values_.resize(options_.topics * dim_);
    random_.Normals(kValueTopic, absl::MakeSpan(topic_values_));

    const auto outside = static_cast<float>(options_.outside_scale);
    Floats offset(dim_);
    random_.Normals(kOffset * outside, absl::MakeSpan(offset));
    styles_.resize(options_.styles * dim_);
    for (size_t style = 0; style < options_.styles; ++style) {
      const absl::Span<float> centre(styles_.data() + style * dim_, dim_);
      random_.Normals(kStyleCentre * outside, centre);
      AddScaled(1, offset, centre);
      RemoveQuerySpace(centre);
    }
    channels_.resize(dim_);
    for (float& scale : channels_) {
      scale = kOutsideNoise * outside * std::min(0.65f / std::sqrt(random_.Uniform()), 2.5f);
    }
  }

  // Whether all are finite in fp16.
  bool MakeKeys(SyntheticHead& head) {
    head.keys.resize(options_.keys * dim_);
    head.values.resize(options_.keys * dim_);
    key_topics_.resize(options_.keys);
    Floats slow(space_), key(dim_), value(dim_);
    random_.Normals(kSlowPart, absl::MakeSpan(slow));
    const float innovation = kSlowPart * std::sqrt(1 - kKeyPersistence * kKeyPersistence);
    size_t topic = random_.Below(options_.topics);
    size_t style = random_.Below(options_.styles);
    for (size_t i = 0; i < options_.keys; ++i) {
      if (random_.Ends(options_.topic_run)) topic = random_.Below(options_.topics);
      if (random_.Ends(options_.style_run)) style = random_.Below(options_.styles);
      key_topics_[i] = static_cast<uint32_t>(topic);
      for (float& x : slow) x = kKeyPersistence * x + innovation * random_.Normal();
      for (size_t j = 0; j < dim_; ++j) key[j] = channels_[j] * random_.Normal();
      for (size_t j = 0; j < space_; ++j) {
        // In place of the noise's part in this dimension.
        const float inside = topics_[topic * space_ + j] + slow[j] + kOwnPart * random_.Normal();
        AddScaled(inside - Dot(key, Basis(j)), Basis(j), absl::MakeSpan(key));
      }
      AddScaled(1, {styles_.data() + style * dim_, dim_}, absl::MakeSpan(key));
      random_.Normals(1, absl::MakeSpan(value));
      AddScaled(1, {topic_values_.data() + topic * dim_, dim_}, absl::MakeSpan(value));
      if (Encode(key, head.keys.data() + i * dim_) ||
          Encode(value, head.values.data() + i * dim_)) {
        return false;
      }
    }
    return true;
  }

  // Whether an element is too large.
  static bool Encode(const Floats& row, uint16_t* to) {
    return EncodeKv(row.data(), KvDtype::kFloat32, KvDtype::kFloat16, row.size(), to).has_value();
  }

  // What moves from query to query of one head.
  struct Wish {
    Floats offset;  // [query_dims]
    Floats drift;   // [query_dims]
    size_t topic = 0;
  };

  void MakeQueries(SyntheticHead& head) {
    const size_t dims = options_.query_dims;
    std::vector<Wish> wishes(options_.group);
    for (Wish& wish : wishes) {
      wish.offset.resize(dims);
      wish.drift.resize(dims);
      random_.Normals(kQueryOffset, absl::MakeSpan(wish.offset));
      random_.Normals(kQueryDrift, absl::MakeSpan(wish.drift));
    }
    const size_t rows = options_.steps * options_.group;
    head.sample_queries.resize(options_.samples * dim_);
    head.decode_queries.resize(rows * dim_);
    for (size_t i = 0; i < options_.samples; ++i) {
      // A query of prefill wants what came before it, and samples are apart by many tokens.
      const size_t position = (i + 1) * (options_.keys / options_.samples + 1);
      Wish& wish = wishes[i % options_.group];
      wish.topic = key_topics_[random_.Below(std::min(position, options_.keys))];
      MakeQuery(i % options_.group, wish, {head.sample_queries.data() + i * dim_, dim_});
    }
    for (size_t i = 0; i < rows; ++i) {
      Wish& wish = wishes[i % options_.group];
      if (i < options_.group || random_.Ends(kMeanWantedSteps)) {
        wish.topic = key_topics_[random_.Below(options_.keys)];
      }
      MakeQuery(i % options_.group, wish, {head.decode_queries.data() + i * dim_, dim_});
    }
  }

  void MakeQuery(size_t head, Wish& wish, absl::Span<float> query) {
    const size_t dims = options_.query_dims;
    const float innovation = kQueryDrift * std::sqrt(1 - kDriftPersistence * kDriftPersistence);
    const float* const topic = topics_.data() + wish.topic * space_;
    float norm = 0;
    for (size_t i = 0; i < dims; ++i) norm += topic[SpaceDim(head, i)] * topic[SpaceDim(head, i)];
    // The direction counts: a small topic is wanted as much as a large one.
    const float scale = kQueryTopic * std::sqrt(static_cast<float>(dims) / std::max(norm, 1e-6f));
    random_.Normals(kQueryOutside, query);
    for (size_t i = 0; i < dims; ++i) {
      wish.drift[i] = kDriftPersistence * wish.drift[i] + innovation * random_.Normal();
      const float inside = wish.offset[i] + wish.drift[i] + scale * topic[SpaceDim(head, i)] +
                           kQueryOwn * random_.Normal();
      AddScaled(inside, Basis(SpaceDim(head, i)), query);
    }
    for (float& x : query) x *= static_cast<float>(options_.query_scale);
  }

  const SyntheticHeadOptions options_;
  const size_t dim_;
  const size_t own_dims_;
  const size_t space_;  // dimensions of the query space
  HeadRandom random_;
  Floats basis_;                      // [space, dim]
  Floats topics_;                     // [topics, space]
  Floats topic_values_;               // [topics, dim]
  Floats styles_;                     // [styles, dim], offset included
  Floats channels_;                   // [dim]
  std::vector<uint32_t> key_topics_;  // [keys]
};

struct Limit {
  const char* field;
  size_t value;
  size_t low;
  size_t high;
};

}  // namespace

absl::Status SyntheticHeadOptions::Validate() const {
  constexpr size_t kMany = size_t{1} << 24;
  for (const Limit& limit :
       {Limit{"keys", keys, 1, kMany}, Limit{"head_dim", head_dim, 8, 1024},
        Limit{"group", group, 1, 64}, Limit{"samples", samples, 0, kMany},
        Limit{"steps", steps, 1, kMany}, Limit{"topics", topics, 1, 65536},
        Limit{"topic_run", topic_run, 1, kMany}, Limit{"styles", styles, 1, 65536},
        Limit{"style_run", style_run, 1, kMany}, Limit{"query_dims", query_dims, 1, head_dim},
        Limit{"shared_dims", shared_dims, 0, query_dims}}) {
    if (limit.value >= limit.low && limit.value <= limit.high) continue;
    return absl::InvalidArgumentError(absl::StrCat("synthetic head: ", limit.field, " is ",
                                                   limit.value, ", expected ", limit.low, " to ",
                                                   limit.high));
  }
  if (head_dim % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("synthetic head: head_dim is ", head_dim, ", expected a multiple of 8"));
  }
  const size_t space = shared_dims + group * (query_dims - shared_dims);
  if (space > head_dim / 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("synthetic head: the queries of ", group, " heads span ", space,
                     " dimensions, more than half of head_dim, which is ", head_dim));
  }
  for (const auto& [field, value] :
       {std::pair("query_scale", query_scale), std::pair("outside_scale", outside_scale)}) {
    // NaN fails both comparisons.
    if (value >= 0 && value <= 100) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("synthetic head: ", field, " is ", value, ", expected 0 to 100"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SyntheticHead> MakeSyntheticHead(const SyntheticHeadOptions& options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  std::optional<SyntheticHead> head = HeadMaker(options).Make();
  if (!head.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("synthetic head: outside_scale is ",
                                                   options.outside_scale,
                                                   ", which makes keys too large for fp16"));
  }
  return *std::move(head);
}

}  // namespace terrace
