#include "tools/engine/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace terrace {
namespace {

constexpr absl::string_view kMetadata = "__metadata__";

struct DtypeBytes {
  absl::string_view name;
  uint64_t bytes;
};
constexpr std::array<DtypeBytes, 16> kDtypes = {{{"BOOL", 1},
                                                 {"U8", 1},
                                                 {"I8", 1},
                                                 {"F8_E5M2", 1},
                                                 {"F8_E4M3", 1},
                                                 {"F8_E8M0", 1},
                                                 {"I16", 2},
                                                 {"U16", 2},
                                                 {"F16", 2},
                                                 {"BF16", 2},
                                                 {"I32", 4},
                                                 {"U32", 4},
                                                 {"F32", 4},
                                                 {"F64", 8},
                                                 {"I64", 8},
                                                 {"U64", 8}}};

// A short printable form of text from a file, which may be long and may be binary.
std::string Quoted(absl::string_view text) {
  constexpr size_t kMaxBytes = 80;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxBytes)),
                      text.size() > kMaxBytes ? "..." : "", "\"");
}

absl::Status TensorError(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name), ": ", what));
}

// Takes the events of nlohmann's parser straight into a list of tensors. Every event returns
// whether to go on; `status` says why not. At depth 1 are the names of tensors, at depth 2 their
// fields, at depth 3 the numbers of a list.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  const absl::Status& status() const { return status_; }
  std::vector<TensorInfo> TakeTensors() { return std::move(tensors_); }

  bool key(string_t& name) override {
    if (depth_ == 1) return StartEntry(name);
    if (in_metadata_) return true;
    const auto field = std::find(kFieldNames.begin(), kFieldNames.end(), name);
    if (field == kFieldNames.end()) return Fail(absl::StrCat("unknown field ", Quoted(name)));
    field_ = static_cast<size_t>(field - kFieldNames.begin());
    if (std::exchange(seen_[field_], true)) return Fail(absl::StrCat(*field, ": appears twice"));
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) return true;
    if (depth_ != 2 || field_ != kDtype) return Wrong("text");
    tensors_.back().dtype = value;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ != 3) return Wrong(absl::StrCat(value));
    (field_ == kShape ? tensors_.back().shape : offsets_).push_back(value);
    return true;
  }
  bool number_integer(number_integer_t value) override { return Wrong(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return Wrong(Quoted(text)); }
  bool null() override { return Wrong("null"); }
  bool boolean(bool value) override { return Wrong(value ? "true" : "false"); }
  bool binary(binary_t&) override { return Wrong("binary data"); }

  bool start_object(size_t) override {
    if (depth_ > 1) return Wrong("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return depth_ == 0 || in_metadata_ || FinishTensor();
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || field_ == kDtype) return Wrong("a list");
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }

  bool parse_error(size_t position, const std::string& last_token,
                   const nlohmann::json::exception&) override {
    status_ = absl::InvalidArgumentError(absl::StrCat("the header is not valid JSON at its byte ",
                                                      position, ": ", Quoted(last_token)));
    return false;
  }

 private:
  enum : size_t { kDtype, kShape, kOffsets };
  static constexpr std::array<absl::string_view, 3> kFieldNames = {"dtype", "shape",
                                                                   "data_offsets"};

  bool Fail(absl::string_view what) {
    status_ = TensorError(in_metadata_ ? kMetadata : name_, what);
    return false;
  }

  // For a value of a type that does not belong where it stands.
  bool Wrong(absl::string_view value) {
    if (depth_ == 0) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat("the header is ", value, ", expected an object of tensors"));
      return false;
    }
    if (depth_ == 1) return Fail(absl::StrCat("is ", value, ", expected an object"));
    if (in_metadata_) return Fail(absl::StrCat("has ", value, ", expected only text"));
    if (field_ == kDtype) return Fail(absl::StrCat("dtype: ", value, " is not text"));
    return Fail(absl::StrCat(kFieldNames[field_], ": ", value,
                             depth_ == 2 ? " is not a list" : " is not an unsigned integer"));
  }

  bool StartEntry(const std::string& name) {
    in_metadata_ = name == kMetadata;
    name_ = name;
    if (!names_.insert(name).second) return Fail("appears twice");
    if (in_metadata_) return true;
    tensors_.emplace_back().name = name;
    offsets_.clear();
    seen_ = {};
    return true;
  }

  bool FinishTensor() {
    for (size_t field = 0; field < kFieldNames.size(); ++field) {
      if (!seen_[field]) return Fail(absl::StrCat(kFieldNames[field], ": is missing"));
    }
    if (offsets_.size() != 2) {
      return Fail(absl::StrCat("data_offsets: has ", offsets_.size(), " numbers, expected 2"));
    }
    if (offsets_[0] > offsets_[1]) {
      return Fail(absl::StrCat("data_offsets: begin ", offsets_[0], " is after end ", offsets_[1]));
    }
    tensors_.back().offset = offsets_[0];
    tensors_.back().bytes = offsets_[1] - offsets_[0];
    return true;
  }

  std::vector<TensorInfo> tensors_;
  absl::flat_hash_set<std::string> names_;
  absl::Status status_;
  // Of the entry being read.
  int depth_ = 0;
  bool in_metadata_ = false;
  std::string name_;
  size_t field_ = kDtype;
  std::array<bool, 3> seen_ = {};
  std::vector<uint64_t> offsets_;
};

// Sets `product` unless it would not fit.
bool Multiply(uint64_t a, uint64_t b, uint64_t& product) {
  return !__builtin_mul_overflow(a, b, &product);
}

absl::Status CheckSize(TensorInfo& tensor) {
  tensor.elements = 1;
  // A dimension of 0 makes an empty tensor, however large the others are.
  if (std::count(tensor.shape.begin(), tensor.shape.end(), 0) > 0) tensor.elements = 0;
  for (const uint64_t size : tensor.shape) {
    if (!Multiply(tensor.elements, size, tensor.elements)) {
      return TensorError(tensor.name, absl::StrCat("shape ", ShapeText(tensor.shape),
                                                   " has more elements than 64 bits count"));
    }
  }
  const auto dtype = std::find_if(kDtypes.begin(), kDtypes.end(),
                                  [&](const DtypeBytes& d) { return d.name == tensor.dtype; });
  if (dtype == kDtypes.end()) return absl::OkStatus();
  uint64_t expected = 0;
  if (!Multiply(tensor.elements, dtype->bytes, expected) || expected != tensor.bytes) {
    return TensorError(tensor.name,
                       absl::StrCat("has ", tensor.bytes, " bytes, but ", tensor.elements,
                                    " elements of ", tensor.dtype, " in shape ",
                                    ShapeText(tensor.shape), " have ", dtype->bytes, " each"));
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<KvDtype> LoadableDtype(absl::string_view dtype) {
  for (const KvDtype candidate : {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16}) {
    if (SafetensorsDtype(candidate) == dtype) return candidate;
  }
  return std::nullopt;
}

absl::string_view SafetensorsDtype(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kFloat32:
      return "F32";
    case KvDtype::kFloat16:
      return "F16";
    case KvDtype::kBfloat16:
      return "BF16";
  }
  return "unknown";
}

std::string ShapeText(absl::Span<const uint64_t> shape) {
  constexpr size_t kMaxShown = 8;
  return absl::StrCat("[", absl::StrJoin(shape.subspan(0, kMaxShown), ", "),
                      shape.size() > kMaxShown ? ", ..." : "", "]");
}

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(absl::string_view header,
                                                               uint64_t data_bytes) {
  if (!absl::StartsWith(header, "{")) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header does not begin with {: ", Quoted(header)));
  }
  HeaderHandler handler;
  const bool parsed = nlohmann::json::sax_parse(header.begin(), header.end(), &handler);
  if (!handler.status().ok()) return handler.status();
  if (!parsed) return absl::InvalidArgumentError("the header is not valid JSON");

  std::vector<TensorInfo> tensors = handler.TakeTensors();
  for (TensorInfo& tensor : tensors) {
    if (tensor.offset + tensor.bytes > data_bytes) {
      return TensorError(tensor.name,
                         absl::StrCat("ends at byte ", tensor.offset + tensor.bytes,
                                      " of the data, of which the file has only ", data_bytes));
    }
    if (absl::Status status = CheckSize(tensor); !status.ok()) return status;
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != end) {
      return TensorError(tensor.name,
                         absl::StrCat("begins at byte ", tensor.offset, " of the data, ",
                                      tensor.offset < end ? "overlapping" : "leaving a hole after",
                                      " what ends at byte ", end));
    }
    end += tensor.bytes;
  }
  if (end != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensors end at byte ", end, " of the data, of which the file has ", data_bytes));
  }
  return tensors;
}

}  // namespace terrace
