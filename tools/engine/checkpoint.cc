#include "tools/engine/checkpoint.h"

#include <unistd.h>

#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "nlohmann/json.hpp"
#include "tools/engine/json_file.h"
#include "xxhash.h"

namespace terrace {

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& directory) {
  const std::string index_path = absl::StrCat(directory, "/model.safetensors.index.json");
  const bool sharded = ::access(index_path.c_str(), F_OK) == 0;
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  const absl::Status status =
      sharded ? checkpoint.OpenShards(directory, index_path)
              : checkpoint.OpenOne(absl::StrCat(directory, "/model.safetensors"));
  if (!status.ok()) return status;
  return checkpoint;
}

absl::Status Checkpoint::OpenOne(const std::string& path) {
  source_ = path;
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  for (size_t i = 0; i < file->tensors().size(); ++i) {
    places_[file->tensors()[i].name] = {files_.size(), i};
  }
  files_.push_back(*std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenShards(const std::string& directory, const std::string& index_path) {
  source_ = index_path;
  const absl::StatusOr<nlohmann::json> index = ReadJsonObject(index_path);
  if (!index.ok()) return index.status();
  const auto bad = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", what...));
  };
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object()) return bad("weight_map: missing or no object");

  std::map<std::string, size_t> opened;  // file name to index of files_
  for (const auto& [tensor, value] : map->items()) {
    const std::string name = value.is_string() ? value.get<std::string>() : "";
    if (name.empty() || name.find('/') != name.npos || name.find('\0') != name.npos) {
      return bad("weight_map: tensor \"", absl::CHexEscape(tensor),
                 "\" is not mapped to the name of a file in the same folder");
    }
    const auto [place, is_new] = opened.emplace(name, files_.size());
    if (is_new) {
      absl::StatusOr<SafetensorsFile> file =
          SafetensorsFile::Open(absl::StrCat(directory, "/", name));
      if (!file.ok()) return file.status();
      files_.push_back(*std::move(file));
    }
    const SafetensorsFile& file = files_[place->second];
    const TensorInfo* const found = file.Find(tensor);
    if (found == nullptr) {
      return bad("weight_map: tensor \"", absl::CHexEscape(tensor), "\" is not in ", file.path());
    }
    places_[tensor] = {place->second, static_cast<size_t>(found - file.tensors().data())};
  }
  return absl::OkStatus();
}

std::vector<std::string> Checkpoint::TensorNames() const {
  std::vector<std::string> names;
  names.reserve(places_.size());
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

const TensorInfo* Checkpoint::Find(const std::string& name) const {
  const auto place = places_.find(name);
  if (place == places_.end()) return nullptr;
  return &files_[place->second.file].tensors()[place->second.tensor];
}

absl::Status Checkpoint::ReadPart(const std::string& name, uint64_t first,
                                  absl::Span<float> values) const {
  const auto place = places_.find(name);
  TERRACE_CHECK(place != places_.end());
  const SafetensorsFile& file = files_[place->second.file];
  return file.ReadPart(file.tensors()[place->second.tensor], first, values);
}

absl::StatusOr<uint64_t> Checkpoint::Fingerprint() const {
  constexpr uint64_t kWholeBytes = uint64_t{1} << 20;
  constexpr uint64_t kStretches = 64;
  constexpr uint64_t kStretchBytes = kWholeBytes / kStretches;
  uint64_t hash = 0;
  const auto add = [&hash](absl::string_view bytes) {
    hash = XXH3_64bits_withSeed(bytes.data(), bytes.size(), hash);
  };
  std::string bytes;
  for (const auto& [name, place] : places_) {
    const SafetensorsFile& file = files_[place.file];
    const TensorInfo& tensor = file.tensors()[place.tensor];
    add(absl::StrCat(name, " ", tensor.dtype, " ", ShapeText(tensor.shape)));
    const bool whole = tensor.bytes <= kWholeBytes;
    bytes.resize(whole ? tensor.bytes : kStretchBytes);
    const uint64_t step = (tensor.bytes - bytes.size()) / (kStretches - 1);
    for (uint64_t i = 0; i < (whole ? 1 : kStretches); ++i) {
      const uint64_t offset = whole ? 0 : i * step;
      absl::Status status = file.ReadBytes(tensor, offset, absl::MakeSpan(bytes));
      if (!status.ok()) return status;
      add(bytes);
    }
  }
  return hash;
}

absl::Status Checkpoint::Read(const std::string& name, absl::Span<const uint64_t> shape,
                              std::vector<float>& values) const {
  const auto place = places_.find(name);
  if (place == places_.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        source_, ": tensor \"", name, "\" is missing, expected shape ", ShapeText(shape)));
  }
  const SafetensorsFile& file = files_[place->second.file];
  const TensorInfo& tensor = file.tensors()[place->second.tensor];
  if (absl::MakeConstSpan(tensor.shape) != shape) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor \"", name,
                                                   "\" has shape ", ShapeText(tensor.shape),
                                                   ", expected ", ShapeText(shape)));
  }
  values.resize(tensor.elements);
  return file.Read(tensor, absl::MakeSpan(values));
}

}  // namespace terrace
