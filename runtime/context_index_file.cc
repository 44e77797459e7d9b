#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/vector_bytes.h"
#include "runtime/checked_file.h"
#include "runtime/context_index.h"

// What a ContextIndex saves: a header, then each layer as a section, with its counts before its
// bytes.
namespace terrace {
namespace {

constexpr uint64_t kMagic = 0x7865646e69637274;
constexpr uint32_t kVersion = 1;

struct Header {
  uint64_t magic = kMagic;
  uint32_t version = kVersion;
  uint32_t layers = 0;
  uint64_t id = 0;
  uint64_t clusters = 0;
};

// Takes the bytes of each head, which are preceded by their number.
bool ReadHeads(VectorReader& reader, size_t count, std::vector<std::vector<std::byte>>& heads) {
  heads.resize(count);
  for (std::vector<std::byte>& head : heads) {
    std::vector<uint64_t> size;
    if (!reader.Read(1, size) || !reader.Read(size[0], head)) return false;
  }
  return true;
}

}  // namespace

absl::Status ContextIndex::Save(const std::string& path, uint64_t id,
                                std::vector<ColumnIndex>& postings) {
  Even();
  postings = postings_;
  CheckedFileWriter file(path);
  file.Write(Header{
      .layers = static_cast<uint32_t>(layers_.size()), .id = id, .clusters = postings_.size()});
  file.EndSection();
  std::vector<std::byte> bytes, head_bytes;
  for (const Layer& layer : layers_) {
    bytes.clear();
    const auto add_head = [&] {
      WriteVector(std::vector<uint64_t>{head_bytes.size()}, bytes);
      WriteVector(head_bytes, bytes);
      head_bytes.clear();
    };
    for (const QuerySamples& samples : layer.samples) {
      samples.Save(head_bytes);
      add_head();
    }
    if (layer.clusters != nullptr && !postings_.empty()) {
      for (const size_t head : layer.clusters->heads()) {
        layer.clusters->Save(head, head_bytes);
        add_head();
      }
    }
    if (layer.graphs != nullptr) {
      const size_t columns = layer.graphs->indexed_columns();
      WriteVector(std::vector<uint64_t>{columns}, bytes);
      if (columns > 0) {
        for (const size_t head : layer.graphs->heads()) {
          layer.graphs->Save(head, head_bytes);
          add_head();
        }
      }
    }
    file.Write(uint64_t{bytes.size()});
    file.Write(bytes.data(), bytes.size());
    file.EndSection();
  }
  return file.Commit();
}

absl::Status ContextIndex::Load(const std::string& path, uint64_t id,
                                std::vector<ColumnIndex> postings) {
  Clear();
  postings_ = std::move(postings);
  absl::Status status = LoadLayers(path, id);
  if (!status.ok()) Clear();
  return status;
}

absl::Status ContextIndex::LoadLayers(const std::string& path, uint64_t id) {
  const auto file = CheckedFileReader::Open(path);
  if (!file.ok()) return file.status();
  Header header;
  absl::Status status = (*file)->Read(header);
  if (status.ok()) status = (*file)->EndSection();
  if (!status.ok()) return status;
  if (header.magic != kMagic || header.version != kVersion || header.layers != layers_.size() ||
      header.id != id || header.clusters != postings_.size()) {
    return absl::FailedPreconditionError(
        (*file)->Damaged("not the index of the saved context beside it").message());
  }
  std::vector<std::byte> bytes;
  for (Layer& layer : layers_) {
    uint64_t size = 0;
    if (status = (*file)->Read(size); !status.ok()) return status;
    if (size > (*file)->left()) return (*file)->Damaged("a layer is larger than the file");
    bytes.resize(size);
    status = (*file)->Read(bytes.data(), size);
    if (status.ok()) status = (*file)->EndSection();
    if (status.ok()) status = LoadLayer(layer, bytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ContextIndex::LoadLayer(Layer& layer, absl::Span<const std::byte> bytes) {
  VectorReader reader(bytes);
  std::vector<std::vector<std::byte>> heads;
  const absl::Status damaged = absl::DataLossError("a layer of a saved index is damaged");
  if (!ReadHeads(reader, layer.samples.size(), heads)) return damaged;
  for (size_t head = 0; head < heads.size(); ++head) {
    if (!layer.samples[head].Load(heads[head])) return damaged;
  }
  if (layer.clusters != nullptr && !postings_.empty()) {
    if (!ReadHeads(reader, layer.clusters->heads().size(), heads)) return damaged;
    if (absl::Status status = layer.clusters->Load(heads, postings_.size()); !status.ok()) {
      return status;
    }
  }
  if (layer.graphs == nullptr) return absl::OkStatus();
  std::vector<uint64_t> columns;
  if (!reader.Read(1, columns)) return damaged;
  if (columns[0] <= 1) return absl::OkStatus();
  if (columns[0] > core_.columns().options().columns ||
      !ReadHeads(reader, layer.graphs->heads().size(), heads)) {
    return damaged;
  }
  return layer.graphs->Load(heads, columns[0]);
}

}  // namespace terrace
