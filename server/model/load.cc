#include "server/model/load.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <sys/stat.h>
#include <torch/version.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/model/decoder.h"
#include "server/model/dictionary/dictionary_learning.h"
#include "server/model/dictionary/gemma_scope.h"
#include "server/model/dictionary/sae_lens.h"
#include "server/model/dictionary/sparsify.h"
#include "server/model/families/hugging_face.h"
#include "server/model/families/nanochat.h"
#include "server/model/load/device_spec.h"
#include "server/model/scalar_type.h"
#include "server/model/torch_compat.h"
#include "server/model/torchscript/torchscript_model.h"

namespace hookline {
namespace {

// Returns whether `path` is like `openai/gpt2`: two names and one slash.
bool IsHubName(absl::string_view path) {
  const size_t slash = path.find('/');
  return slash != absl::string_view::npos && slash > 0 && slash + 1 < path.size() && path[0] != '.' &&
         path.find('/', slash + 1) == absl::string_view::npos;
}

// Returns how many devices of a type LibTorch finds.
int CountDevices(at::DeviceType type) {
  if (type == at::kCUDA && !at::hasCUDA()) return 0;
  return c10::impl::hasDeviceGuardImpl(type) ? c10::impl::VirtualGuardImpl(type).deviceCount() : 0;
}

absl::StatusOr<at::Device> FindDevice(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  std::optional<at::Device> device;
  try {
    device.emplace(name);
  } catch (const c10::Error&) {
    device.reset();
  }
  // Any accelerator that registers with LibTorch works like CUDA.
  if (!device || device->is_cpu() || (!device->is_cuda() && CountDevices(device->type()) == 0)) {
    return absl::InvalidArgumentError(absl::StrCat("device '", name, "' is not one of cpu, cuda, cuda:N, auto"));
  }
  const int index = device->has_index() ? device->index() : 0;
  if (const int count = CountDevices(device->type()); index >= count) {
    return absl::InvalidArgumentError(absl::StrCat("device '", name, "' does not exist: LibTorch ", TORCH_VERSION,
                                                   " finds ", count, " ", c10::DeviceTypeName(device->type()),
                                                   " devices"));
  }
  return at::Device(device->type(), static_cast<at::DeviceIndex>(index));
}

using Devices = std::vector<at::Device>;

// Returns the devices of each replica's stages.
absl::StatusOr<std::vector<Devices>> FindDevices(const std::string& text) {
  std::vector<Devices> replicas;
  if (text == "auto") {
    for (int i = 0; i < CountDevices(at::kCUDA); ++i) {
      replicas.push_back({at::Device(at::kCUDA, static_cast<at::DeviceIndex>(i))});
    }
    if (replicas.empty()) replicas.push_back({at::Device(at::kCPU)});
    return replicas;
  }
  ASSIGN_OR_RETURN(const auto names, ParseDevices(text));
  for (const std::vector<std::string>& stages : names) {
    Devices& replica = replicas.emplace_back();
    for (const std::string& name : stages) {
      ASSIGN_OR_RETURN(const at::Device device, FindDevice(name));
      replica.push_back(device);
    }
  }
  return replicas;
}

absl::StatusOr<Dtype> FindDtype(const std::string& name, const at::Device& device) {
  if (name == "auto") return device.is_cpu() ? Dtype::kFloat32 : Dtype::kBFloat16;
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    if (name == DtypeName(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("dtype '", name, "' is not one of float32, bfloat16, float16, auto"));
}

void DeviceText(std::string* out, const at::Device& device) { absl::StrAppend(out, device.str()); }

// Runs one token through the whole model, whose layers can be of several kinds, so that anything that LibTorch cannot
// do in this dtype on the device fails now and not in a capture.
absl::Status TryOneToken(Model& model, const at::Device& device) {
  const at::Tensor ids = at::zeros({1, 1}, at::TensorOptions().dtype(at::kLong).device(device));
  return model.Forward(ids, /*lengths=*/{}, {model.hook_points().size() - 1}, [](int, const at::Tensor&) {});
}

constexpr char kNoDictionary[] =
    "not a dictionary; SAELens's directories hold cfg.json and sae_weights.safetensors, sparsify's cfg.json and "
    "sae.safetensors, dictionary_learning's config.json and ae.pt, Gemma Scope's params.npz";

absl::StatusOr<std::shared_ptr<const Dictionary>> ReadDictionary(const DictionaryOptions& options,
                                                                 const at::Device& device) {
  if (IsSaeLensFolder(options.path)) return ReadSaeLens(options.name, options.path, device);
  if (IsSparsifyFolder(options.path)) return ReadSparsify(options.name, options.path, device);
  if (IsDictionaryLearningFolder(options.path)) return ReadDictionaryLearning(options.name, options.path, device);
  if (IsGemmaScope(options.path)) return ReadGemmaScope(options.name, options.path, device);
  return absl::NotFoundError(kNoDictionary);
}

// Returns the device on which the rows of a block's hook points are computed.
at::Device DeviceOf(const std::vector<Stage>& stages, int layer) {
  for (const Stage& stage : stages) {
    if (layer < stage.first_block + stage.blocks) return at::Device(stage.device);
  }
  return at::Device(stages.back().device);
}

// Reads a dictionary and attaches it to `model`.
absl::Status AddDictionary(const DictionaryOptions& options, const std::vector<Stage>& stages, Model& model) {
  const auto refused = [&](absl::StatusCode code, absl::string_view why) {
    return absl::Status(code, absl::StrCat("--dictionary ", options.name, "=", options.path, ": ", why));
  };
  auto dictionary = ReadDictionary(options, at::Device(stages.front().device));
  if (!dictionary.ok()) return refused(dictionary.status().code(), dictionary.status().message());
  const std::string& stated = (*dictionary)->info().hook_point;
  const std::string& name = options.hook_point.empty() ? stated : options.hook_point;
  if (name.empty()) {
    return refused(absl::StatusCode::kInvalidArgument, "its files name no hook point; give NAME=PATH@HOOK");
  }
  const std::string& output = (*dictionary)->info().output_point;
  for (const std::string& one : {name, output}) {
    if (one.empty() || model.hook_points().Find(one) >= 0) continue;
    return refused(absl::StatusCode::kInvalidArgument,
                   absl::StrCat(one, " is not a hook point of model \"", model.info().name, "\"; the nearest are ",
                                absl::StrJoin(model.hook_points().Nearest(one, 3), ", "), " (NAME=PATH@HOOK)"));
  }
  const int hook_point = model.hook_points().Find(name);
  const int output_point = output.empty() ? hook_point : model.hook_points().Find(output);
  // The dictionary's files say where it belongs, so a dictionary for another stage is read a second time.
  const at::Device own = DeviceOf(stages, model.hook_points()[hook_point].layer);
  if (own != DeviceOf(stages, model.hook_points()[output_point].layer)) {
    return refused(absl::StatusCode::kInvalidArgument,
                   absl::StrCat("it reads ", name, " and writes ", output, ", which --device puts on two devices"));
  }
  if (own != at::Device(stages.front().device)) {
    dictionary = ReadDictionary(options, own);
    if (!dictionary.ok()) return refused(dictionary.status().code(), dictionary.status().message());
  }
  return model.Attach(*std::move(dictionary), hook_point, output_point);
}

// The contents of a path, and the devices and dtype to load them in.
struct Found {
  enum class Kind { kNanochat, kHuggingFace, kTorchScript };

  // Returns whether a replica uses the weights of the first one. Replicas on the CPU do, unless the
  // model is TorchScript.
  bool IsShared(size_t replica) const {
    return kind != Kind::kTorchScript && replica > 0 && replicas[replica] == replicas[0];
  }

  Kind kind;
  std::vector<Devices> replicas;
  Dtype dtype;
};

absl::StatusOr<Found> Find(const ModelOptions& options) {
  struct stat status;
  if (stat(options.path.c_str(), &status) != 0) {
    const int error = errno;
    return absl::NotFoundError(
        absl::StrCat(options.path, ": ", std::strerror(error),
                     IsHubName(options.path)
                         ? "; if this is a name on the Hugging Face hub, download the model and give its directory; "
                           "the server downloads nothing"
                         : ""));
  }
  ASSIGN_OR_RETURN(const std::vector<Devices> replicas, FindDevices(options.device));
  ASSIGN_OR_RETURN(const Dtype dtype, FindDtype(options.dtype, replicas[0][0]));
  if (S_ISREG(status.st_mode)) {
    for (const Devices& devices : replicas) {
      if (devices.size() == 1) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("device ", Quoted(options.device), ": ", options.path,
                       " is a TorchScript model, which is not split into stages; give one device for each replica"));
    }
    return Found{Found::Kind::kTorchScript, replicas, dtype};
  }
  if (S_ISDIR(status.st_mode)) {
    if (IsNanochatFolder(options.path)) return Found{Found::Kind::kNanochat, replicas, dtype};
    if (IsHuggingFaceFolder(options.path)) return Found{Found::Kind::kHuggingFace, replicas, dtype};
  }
  return absl::FailedPreconditionError(
      absl::StrCat(options.path,
                   ": not a model; a nanochat checkpoint directory holds model_NNNNNN.pt and meta_NNNNNN.json, a "
                   "Hugging Face one config.json and model.safetensors or pytorch_model.bin, a TorchScript model is "
                   "one file"));
}

absl::StatusOr<std::unique_ptr<Model>> LoadScript(const ModelOptions& options, const ModelInfo& info) {
  if (!options.dictionaries.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--dictionary ", options.dictionaries[0].name, ": ", options.path,
                                                   " is a TorchScript model, which cannot have dictionaries"));
  }
  TorchScriptOptions script;
  script.name = info.name;
  script.path = options.path;
  script.device = info.device;
  script.dtype = info.dtype;
  script.context_length = options.context_length;
  script.vocabulary_size = options.vocabulary_size;
  script.timeout = options.torchscript_timeout;
  return LoadTorchScript(script);
}

// Returns what is known of a replica before its files are read.
ModelInfo InfoOf(const ModelOptions& options, const Found& found, const Devices& devices) {
  ModelInfo info;
  info.name = ModelName(options);
  info.dtype = found.dtype;
  info.device = devices[0].str();
  return info;
}

// Returns the stages on the devices, without their blocks.
std::vector<Stage> StagesOn(const Devices& devices) {
  std::vector<Stage> stages;
  for (const at::Device& device : devices) stages.push_back({device.str(), 0, 0, 0});
  return stages;
}

absl::StatusOr<std::vector<MemoryNeed>> CountReplica(const ModelOptions& options, const Found& found,
                                                     const Devices& devices) {
  const at::ScalarType dtype = ScalarTypeOf(found.dtype);
  if (found.kind == Found::Kind::kNanochat) return CountNanochat(options, StagesOn(devices), dtype);
  if (found.kind == Found::Kind::kHuggingFace) return CountHuggingFace(options, StagesOn(devices), dtype);
  std::error_code unreadable;
  const uintmax_t file_bytes = std::filesystem::file_size(options.path, unreadable);
  const int64_t bytes = unreadable ? 0 : static_cast<int64_t>(file_bytes);
  return std::vector<MemoryNeed>{
      {ModelName(options), devices[0].str(), found.dtype == Dtype::kFloat32 ? bytes : bytes / 2}};
}

absl::StatusOr<std::vector<MemoryNeed>> Count(const ModelOptions& options) {
  ASSIGN_OR_RETURN(const Found found, Find(options));
  std::map<std::string, MemoryNeed> needs;  // by device
  for (size_t i = 0; i < found.replicas.size(); ++i) {
    if (found.IsShared(i)) continue;
    ASSIGN_OR_RETURN(const std::vector<MemoryNeed> counted, CountReplica(options, found, found.replicas[i]));
    for (const MemoryNeed& need : counted) {
      MemoryNeed& all = needs.try_emplace(need.device, MemoryNeed{need.model, need.device, 0}).first->second;
      all.bytes += need.bytes;
    }
  }
  std::vector<MemoryNeed> list;
  for (auto& [device, need] : needs) list.push_back(std::move(need));
  return list;
}

absl::StatusOr<ServedModel::Executor> LoadReplica(const ModelOptions& options, const Found& found,
                                                  const Devices& devices) {
  ServedModel::Executor loaded;
  loaded.stages = StagesOn(devices);
  ModelInfo info = InfoOf(options, found, devices);
  if (found.kind == Found::Kind::kTorchScript) {
    ASSIGN_OR_RETURN(loaded.model, LoadScript(options, info));
    loaded.stages[0].blocks = loaded.model->info().layers;
    return loaded;
  }
  const at::ScalarType dtype = ScalarTypeOf(found.dtype);
  if (found.kind == Found::Kind::kNanochat) {
    ASSIGN_OR_RETURN(loaded.model, LoadNanochat(options, std::move(info), dtype, &loaded.stages));
  } else {
    ASSIGN_OR_RETURN(loaded.model, LoadHuggingFace(options, std::move(info), dtype, &loaded.stages));
  }
  if (absl::Status tried = TryOneToken(*loaded.model, devices[0]); !tried.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": LibTorch ", TORCH_VERSION,
                                                   " cannot compute this model in ", DtypeName(found.dtype), " on ",
                                                   absl::StrJoin(devices, "+", DeviceText), ": ", tried.message()));
  }
  for (const DictionaryOptions& dictionary : options.dictionaries) {
    RETURN_IF_ERROR(AddDictionary(dictionary, loaded.stages, *loaded.model));
  }
  return loaded;
}

absl::StatusOr<std::unique_ptr<Model>> Load(const ModelOptions& options) {
  ASSIGN_OR_RETURN(const Found found, Find(options));
  ASSIGN_OR_RETURN(ServedModel::Executor loaded, LoadReplica(options, found, found.replicas[0]));
  return std::move(loaded.model);
}

// Only decoders can be shared or have several stages.
std::unique_ptr<Model> Share(const Model& model, Decoder::Sharing sharing) {
  return static_cast<const Decoder&>(model).Share(sharing);
}

absl::StatusOr<ServedModel> LoadServed(const ModelOptions& options) {
  ASSIGN_OR_RETURN(const Found found, Find(options));
  ServedModel served;
  for (size_t i = 0; i < found.replicas.size(); ++i) {
    ServedModel::Executor replica;
    if (found.IsShared(i)) {
      replica.model = Share(served.first(), Decoder::Sharing::kReplica);
      replica.stages = served.executors.front().stages;
    } else {
      ASSIGN_OR_RETURN(replica, LoadReplica(options, found, found.replicas[i]));
    }
    replica.replica = static_cast<int>(i);
    if (i > 0 && replica.model->info().fingerprint != served.first().info().fingerprint) {
      return absl::FailedPreconditionError(
          absl::StrCat(options.path, ": the checkpoint was changed while its replicas were loaded; start again"));
    }
    std::vector<ServedModel::Executor> others;
    for (size_t stage = 1; stage < replica.stages.size(); ++stage) {
      others.push_back({Share(*replica.model, Decoder::Sharing::kPipeline), replica.replica, replica.stages});
    }
    served.executors.push_back(std::move(replica));
    for (ServedModel::Executor& other : others) served.executors.push_back(std::move(other));
  }
  return served;
}

}  // namespace

std::string ModelName(const ModelOptions& options) {
  if (!options.name.empty()) return options.name;
  absl::string_view path = options.path;
  while (path.size() > 1 && absl::ConsumeSuffix(&path, "/")) {
  }
  const size_t slash = path.rfind('/');
  if (slash != absl::string_view::npos) path.remove_prefix(slash + 1);
  return std::string(absl::StripSuffix(path, ".pt"));
}

namespace {

// Calls `load` and turns LibTorch's exceptions into errors about the model's path.
template <typename T>
absl::StatusOr<T> Caught(const ModelOptions& options, absl::FunctionRef<absl::StatusOr<T>(const ModelOptions&)> load) {
  try {
    return load(options);
  } catch (const c10::Error& error) {
    const std::string message = absl::StrCat(options.path, ": ", error.what_without_backtrace());
    return IsOutOfMemory(error) ? absl::ResourceExhaustedError(message) : absl::FailedPreconditionError(message);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(options.path, ": no memory to load it"));
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat(options.path, ": ", error.what()));
  }
}

}  // namespace

absl::StatusOr<std::vector<MemoryNeed>> CountWeights(const ModelOptions& options) {
  return Caught<std::vector<MemoryNeed>>(options, Count);
}

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const ModelOptions& options) {
  return Caught<std::unique_ptr<Model>>(options, Load);
}

absl::StatusOr<ServedModel> LoadServedModel(const ModelOptions& options) {
  return Caught<ServedModel>(options, LoadServed);
}

}  // namespace hookline
