#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/runtime_core.h"
#include "runtime/saved_contexts.h"

namespace terrace {
namespace {

constexpr uint64_t kMagic = 0x7478746365636174;
constexpr uint32_t kVersion = 3;
constexpr size_t kCacheLine = 64;

}  // namespace

// The sections of a manifest, each with its checksum: the header; the tokens and the window; the
// columns, and the keys of those of its clusters.
struct SavedContexts::Header {
  uint64_t magic = kMagic;
  uint32_t version = kVersion;
  uint32_t summary_lines = 0;  // of a column, each of kCacheLine bytes
  uint64_t fingerprint = 0;    // of the model and the size of blocks
  uint64_t lookups = 0;        // of what made the summaries
  int64_t tokens = 0;
  int64_t first = 0;  // of the window, in every layer
  uint64_t named_tokens = 0;
  uint64_t columns = 0;
  uint64_t postings = 0;
  uint64_t index_id = 0;
};

// RuntimeCore pads the summary of every head to whole lines.
uint32_t SavedContexts::SummaryLines() const {
  return static_cast<uint32_t>(core_.columns().column_summary_bytes() / kCacheLine);
}

uint64_t SavedContexts::WindowBytes(const Header& header) const {
  const uint64_t token = 2 * core_.tail_layout().row_bytes() + sizeof(float);
  return static_cast<uint64_t>(header.tokens - header.first) * core_.shape().layers *
         core_.shape().kv_heads * token;
}

absl::Status SavedContexts::ReadHeader(CheckedFileReader& file, Header& header) const {
  if (absl::Status status = file.Read(header); !status.ok()) return status;
  if (header.magic != kMagic) return file.Damaged("not a saved context");
  if (header.version != kVersion) {
    return absl::FailedPreconditionError(
        file.Damaged(
                absl::StrCat("version ", header.version, " of saved contexts is not ", kVersion))
            .message());
  }
  if (absl::Status status = file.EndSection(); !status.ok()) return status;
  if (header.fingerprint != core_.options().tiers.model_fingerprint) {
    return absl::FailedPreconditionError(
        file.Damaged("saved from another model or size of blocks").message());
  }
  const auto block = static_cast<int64_t>(core_.block_tokens());
  // Counts are checked before anything is sized by them.
  const bool plausible = header.first >= 0 && header.first % block == 0 &&
                         header.first <= header.tokens &&
                         header.columns == static_cast<uint64_t>(header.first / block) &&
                         header.postings <= header.columns &&
                         header.named_tokens <= static_cast<uint64_t>(header.tokens) &&
                         header.tokens - header.first <= int64_t{1} << 32 &&
                         header.named_tokens * sizeof(int32_t) + WindowBytes(header) <= file.left();
  if (!plausible) return file.Damaged("its header contradicts itself");
  return absl::OkStatus();
}

SavedContexts::Saved SavedContexts::ReadManifest(const std::string& path) const {
  Saved saved;
  const auto file = CheckedFileReader::Open(path);
  Header header;
  saved.status = file.status();
  if (saved.status.ok()) saved.status = ReadHeader(**file, header);
  if (saved.status.ok()) {
    saved.status = (*file)->Skip(header.named_tokens * sizeof(int32_t) + WindowBytes(header));
  }
  if (saved.status.ok()) saved.status = (*file)->EndSection();
  if (saved.status.ok()) saved.status = ReadColumns(**file, header, saved);
  saved.tokens = header.tokens;
  saved.index_id = header.index_id;
  saved.index_fits = header.lookups == LookupFingerprint();
  if (saved.status.ok()) saved.status = ReadPostings(**file, header, saved);
  if (!saved.status.ok()) {
    core_.columns().Abandon(saved.columns);
    core_.columns().Abandon(saved.postings);
    Saved failed;
    failed.status = std::move(saved.status);
    return failed;
  }
  return saved;
}

absl::Status SavedContexts::ReadColumns(CheckedFileReader& file, const Header& header,
                                        Saved& saved) const {
  // Made by the lookups of this runtime.
  const bool summaries_fit =
      header.lookups == LookupFingerprint() && header.summary_lines == SummaryLines();
  for (uint64_t i = 0; i < header.columns; ++i) {
    const absl::StatusOr<ColumnIndex> column = ReadColumn(file, header, summaries_fit);
    if (!column.ok()) return column.status();
    saved.columns.push_back(*column);
  }
  if (absl::Status status = file.EndSection(); !status.ok()) return status;
  // Only now is it known that what was read is right.
  if (summaries_fit) {
    for (const ColumnIndex column : saved.columns) core_.columns().Complete(column);
  }
  return absl::OkStatus();
}

// Where the clusters are of no use, or find no room, they are forgotten: the tokens are all there.
absl::Status SavedContexts::ReadPostings(CheckedFileReader& file, const Header& header,
                                         Saved& saved) const {
  for (uint64_t i = 0; i < header.postings; ++i) {
    ColumnKey key;
    if (absl::Status status = file.Read(key); !status.ok()) return status;
    if (!saved.index_fits) continue;
    const absl::StatusOr<ColumnIndex> column = core_.columns().RestorePosting(key);
    if (column.ok()) {
      saved.postings.push_back(*column);
    } else {
      saved.index_fits = false;
    }
  }
  if (!saved.index_fits) core_.columns().Abandon(std::exchange(saved.postings, {}));
  return file.EndSection();
}

// A column that another manifest brought already is shared with it, and takes the summaries of
// whichever fits.
absl::StatusOr<ColumnIndex> SavedContexts::ReadColumn(CheckedFileReader& file, const Header& header,
                                                      bool summaries_fit) const {
  const ColumnTable::Options& options = core_.columns().options();
  ColumnKey key;
  ColumnKey parent;
  uint8_t named = 0;
  absl::Status status = file.Read(key);
  if (status.ok()) status = file.Read(parent);
  if (status.ok()) status = file.Read(named);
  std::vector<int32_t> tokens(named != 0 ? options.tokens : 0);
  if (status.ok()) status = file.Read(tokens.data(), tokens.size() * sizeof(int32_t));
  if (!status.ok()) return status;
  const uint64_t summaries = uint64_t{header.summary_lines} * kCacheLine;
  const absl::StatusOr<ColumnIndex> column = core_.columns().Restore(key, parent, tokens);
  if (!column.ok()) return column.status();
  const absl::Span<std::byte> memory = core_.columns().summaries(*column);
  status = summaries_fit && !core_.columns().is_complete(*column)
               ? file.Read(memory.data(), memory.size())
               : file.Skip(summaries);
  if (!status.ok()) {
    core_.columns().Abandon({&*column, 1});
    return status;
  }
  return column;
}

absl::Status SavedContexts::ReadContext(const std::string& path, Context& context) const {
  const auto file = CheckedFileReader::Open(path);
  if (!file.ok()) return file.status();
  Header header;
  if (absl::Status status = ReadHeader(**file, header); !status.ok()) return status;
  const auto held = static_cast<uint64_t>(header.tokens - header.first);
  if (held > core_.tail_layout().capacity_tokens) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": its window holds ", held, " tokens, more than the ",
                     core_.tail_layout().capacity_tokens,
                     " that window_tokens, max_append_tokens and a block come to"));
  }
  if (absl::Status status = ReadWindow(**file, header, context); !status.ok()) return status;
  return (*file)->EndSection();
}

absl::Status SavedContexts::ReadWindow(CheckedFileReader& file, const Header& header,
                                       Context& context) const {
  context.token_ids_.resize(header.named_tokens);
  absl::Status status = file.Read(context.token_ids_.data(), header.named_tokens * sizeof(int32_t));
  context.ExtendChain();
  context.has_sinks_ = false;
  const auto held = static_cast<size_t>(header.tokens - header.first);
  const size_t bytes = held * core_.tail_layout().row_bytes();
  std::vector<std::byte> keys(bytes);
  std::vector<std::byte> values(bytes);
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    context.tail_.Restart(layer, header.tokens);
    context.tail_.OpenFront(layer, held);
    for (size_t head = 0; head < core_.shape().kv_heads && status.ok(); ++head) {
      status = file.Read(keys.data(), bytes);
      if (status.ok()) status = file.Read(values.data(), bytes);
      context.tail_.FillFront(layer, head, 0, keys.data(), values.data(), held);
      const absl::Span<float> masses =
          context.tail_.Masses(layer, head, header.first, header.tokens);
      if (status.ok()) status = file.Read(masses.data(), masses.size() * sizeof(float));
    }
  }
  return status;
}

absl::Status SavedContexts::WriteManifest(const std::string& path, const Context& context,
                                          const Saved& saved) const {
  CheckedFileWriter file(path);
  const Header header = {
      .summary_lines = SummaryLines(),
      .fingerprint = core_.options().tiers.model_fingerprint,
      .lookups = LookupFingerprint(),
      .tokens = context.TokensLocked(),
      .first = context.tail_.first(0),
      .named_tokens = std::min<uint64_t>(context.token_ids_.size(),
                                         static_cast<uint64_t>(context.TokensLocked())),
      .columns = context.columns_.size(),
      .postings = saved.postings.size(),
      .index_id = saved.index_id};
  file.Write(header);
  file.EndSection();
  file.Write(context.token_ids_.data(), header.named_tokens * sizeof(int32_t));
  WriteWindow(file, context);
  file.EndSection();
  for (const ColumnIndex column : context.columns_) {
    file.Write(core_.columns().key(column));
    file.Write(core_.columns().parent(column));
    const absl::Span<const int32_t> tokens = core_.columns().tokens(column);
    file.Write(static_cast<uint8_t>(!tokens.empty()));
    file.Write(tokens.data(), tokens.size() * sizeof(int32_t));
    const absl::Span<const std::byte> summaries = core_.columns().summaries(column);
    file.Write(summaries.data(), summaries.size());
  }
  file.EndSection();
  for (const ColumnIndex posting : saved.postings) file.Write(core_.columns().key(posting));
  file.EndSection();
  return file.Commit();
}

void SavedContexts::WriteWindow(CheckedFileWriter& file, const Context& context) const {
  const Tail& tail = context.tail_;
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    const int64_t first = tail.first(layer);
    const int64_t end = tail.tokens(layer);
    for (size_t head = 0; head < core_.shape().kv_heads; ++head) {
      const KvRun run = tail.Run(layer, head, first, end);
      file.Write(run.keys, run.tokens * core_.tail_layout().row_bytes());
      file.Write(run.values, run.tokens * core_.tail_layout().row_bytes());
      const absl::Span<const float> masses = tail.Masses(layer, head, first, end);
      file.Write(masses.data(), masses.size() * sizeof(float));
    }
  }
}

}  // namespace terrace
