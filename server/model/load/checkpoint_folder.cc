#include "server/model/load/checkpoint_folder.h"

#include <unistd.h>

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/json.h"
#include "server/base/status.h"
#include "server/model/load/checkpoint_file.h"
#include "server/model/load/safetensors_checkpoint.h"
#include "server/model/load/torch_checkpoint.h"

namespace hookline {
namespace {

using Json = nlohmann::json;
using ReadShard = absl::StatusOr<StateDict> (*)(const std::string& path);

constexpr int64_t kMaxIndexBytes = int64_t{32} << 20;
// An index is {"metadata": {...}, "weight_map": {...}}; JSON that is nested more deeply is not read.
constexpr int kMaxIndexDepth = 8;

bool IsThere(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

absl::Status Bad(const std::string& index, absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat(index, ": ", what));
}

// Returns the `weight_map` of the index: files by tensor.
absl::StatusOr<Json> ReadWeightMap(const std::string& index) {
  ASSIGN_OR_RETURN(const std::string text, ReadCheckpointText(index, kMaxIndexBytes));
  const absl::StatusOr<Json> json = ParseJsonObject(text, kMaxIndexDepth);
  if (!json.ok()) return Bad(index, json.status().message());
  const auto map = json->find("weight_map");
  if (map == json->end() || !map->is_object()) return Bad(index, "has no weight_map");
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) return Bad(index, absl::StrCat("weight_map gives no file for ", Quoted(name)));
    const std::string& shard_name = shard.get_ref<const std::string&>();
    if (shard_name.empty() || shard_name[0] == '.' || shard_name.find('/') != std::string::npos ||
        shard_name.find('\0') != std::string::npos) {
      return Bad(index, absl::StrCat("weight_map names ", Quoted(shard_name), ", which is not a file of this folder"));
    }
  }
  return *map;
}

absl::StatusOr<StateDict> ReadShards(const std::string& folder, const std::string& index, ReadShard read_shard) {
  ASSIGN_OR_RETURN(const Json map, ReadWeightMap(index));
  std::set<std::string> shards;
  for (const auto& [name, shard] : map.items()) shards.insert(shard.get<std::string>());
  StateDict weights;
  weights.path = folder;
  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(StateDict part, read_shard(absl::StrCat(folder, "/", shard)));
    for (auto& [name, tensor] : part.tensors) {
      const auto home = map.find(name);
      if (home == map.end() || *home != shard) {
        return Bad(index, absl::StrCat(Quoted(shard), " holds tensor ", Quoted(name),
                                       ", which weight_map does not list for it"));
      }
      weights.tensors.emplace(name, std::move(tensor));
    }
  }
  for (const auto& [name, shard] : map.items()) {
    if (weights.tensors.find(name) == weights.tensors.end()) {
      return Bad(index, absl::StrCat("tensor ", Quoted(name), " is not in ",
                                     Quoted(shard.get_ref<const std::string&>()), ", where weight_map has it"));
    }
  }
  return weights;
}

}  // namespace

absl::StatusOr<StateDict> ReadCheckpointFolder(const std::string& folder) {
  struct Form {
    const char* file;
    ReadShard read;
  };
  constexpr Form kForms[] = {{"model.safetensors", ReadSafetensors}, {"pytorch_model.bin", ReadTorchCheckpoint}};
  for (const Form& form : kForms) {
    const std::string single = absl::StrCat(folder, "/", form.file);
    if (IsThere(single)) return form.read(single);
    if (const std::string index = single + ".index.json"; IsThere(index)) return ReadShards(folder, index, form.read);
  }
  return absl::NotFoundError(
      absl::StrCat(folder,
                   ": there are no weights: none of model.safetensors, model.safetensors.index.json, "
                   "pytorch_model.bin and pytorch_model.bin.index.json"));
}

}  // namespace hookline
