#include "server/model/load.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <sys/stat.h>
#include <torch/version.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/status.h"
#include "server/model/dictionary/dictionary_learning.h"
#include "server/model/dictionary/gemma_scope.h"
#include "server/model/dictionary/sae_lens.h"
#include "server/model/dictionary/sparsify.h"
#include "server/model/families/hugging_face.h"
#include "server/model/families/nanochat.h"
#include "server/model/scalar_type.h"
#include "server/model/torch_compat.h"
#include "server/model/torchscript/torchscript_model.h"

namespace hookline {
namespace {

// `openai/gpt2`: two names and one slash.
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
  if (name == "auto") return CountDevices(at::kCUDA) > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  std::optional<at::Device> device;
  try {
    device.emplace(name);
  } catch (const c10::Error&) {
  }
  // Another accelerator that announces itself to LibTorch serves as well as CUDA.
  if (!device || device->is_cpu() || (!device->is_cuda() && CountDevices(device->type()) == 0)) {
    return absl::InvalidArgumentError(absl::StrCat("device '", name, "' is not one of cpu, cuda, cuda:N, auto"));
  }
  const int index = device->has_index() ? device->index() : 0;
  if (const int count = CountDevices(device->type()); index >= count) {
    return absl::InvalidArgumentError(absl::StrCat("device '", name, "' is not there: LibTorch ", TORCH_VERSION,
                                                   " finds ", count, " ", c10::DeviceTypeName(device->type()),
                                                   " devices"));
  }
  return at::Device(device->type(), static_cast<at::DeviceIndex>(index));
}

absl::StatusOr<Dtype> FindDtype(const std::string& name, const at::Device& device) {
  if (name == "auto") return device.is_cpu() ? Dtype::kFloat32 : Dtype::kBFloat16;
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    if (name == DtypeName(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("dtype '", name, "' is not one of float32, bfloat16, float16, auto"));
}

// One token through the whole model, whose layers may be of several kinds: what the device's LibTorch cannot do in this
// dtype shows here and not in a capture.
absl::Status TryOneToken(Model& model, const at::Device& device) {
  const at::Tensor ids = at::zeros({1, 1}, at::TensorOptions().dtype(at::kLong).device(device));
  return model.Forward(ids, /*lengths=*/{}, {model.hook_points().size() - 1}, [](int, const at::Tensor&) {});
}

constexpr char kNoDictionary[] =
    "not a dictionary; SAELens's directories hold cfg.json and sae_weights.safetensors, sparsify's cfg.json and "
    "sae.safetensors, dictionary_learning's config.json and ae.pt, Gemma Scope's params.npz";

// Reads a dictionary and attaches it to `model`.
absl::Status AddDictionary(const DictionaryOptions& options, const at::Device& device, Model& model) {
  const auto refused = [&](absl::StatusCode code, absl::string_view why) {
    return absl::Status(code, absl::StrCat("--dictionary ", options.name, "=", options.path, ": ", why));
  };
  auto dictionary = IsSaeLensFolder(options.path)    ? ReadSaeLens(options.name, options.path, device)
                    : IsSparsifyFolder(options.path) ? ReadSparsify(options.name, options.path, device)
                    : IsDictionaryLearningFolder(options.path)
                        ? ReadDictionaryLearning(options.name, options.path, device)
                    : IsGemmaScope(options.path) ? ReadGemmaScope(options.name, options.path, device)
                                                 : absl::NotFoundError(kNoDictionary);
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
  return model.Attach(*std::move(dictionary), hook_point,
                      output.empty() ? hook_point : model.hook_points().Find(output));
}

// A path's contents, and the device and dtype that it is to be loaded in.
struct Found {
  enum class Kind { kNanochat, kHuggingFace, kTorchScript };
  Kind kind;
  at::Device device;
  Dtype dtype;
};

absl::StatusOr<Found> Find(const ModelOptions& options) {
  struct stat status;
  if (stat(options.path.c_str(), &status) != 0) {
    const int error = errno;
    return absl::NotFoundError(
        absl::StrCat(options.path, ": ", std::strerror(error),
                     IsHubName(options.path)
                         ? "; where this is a name on the Hugging Face hub, download it and give its directory, for "
                           "nothing is downloaded here"
                         : ""));
  }
  ASSIGN_OR_RETURN(const at::Device device, FindDevice(options.device));
  ASSIGN_OR_RETURN(const Dtype dtype, FindDtype(options.dtype, device));
  if (S_ISREG(status.st_mode)) return Found{Found::Kind::kTorchScript, device, dtype};
  if (S_ISDIR(status.st_mode)) {
    if (IsNanochatFolder(options.path)) return Found{Found::Kind::kNanochat, device, dtype};
    if (IsHuggingFaceFolder(options.path)) return Found{Found::Kind::kHuggingFace, device, dtype};
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
                                                   " is a TorchScript model, beside which none can stand"));
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

absl::StatusOr<MemoryNeed> Count(const ModelOptions& options) {
  ASSIGN_OR_RETURN(const Found found, Find(options));
  MemoryNeed need{ModelName(options), found.device.str(), 0};
  switch (found.kind) {
    case Found::Kind::kNanochat: {
      ASSIGN_OR_RETURN(need.bytes, CountNanochat(options, ScalarTypeOf(found.dtype)));
      break;
    }
    case Found::Kind::kHuggingFace: {
      ASSIGN_OR_RETURN(need.bytes, CountHuggingFace(options, ScalarTypeOf(found.dtype)));
      break;
    }
    case Found::Kind::kTorchScript: {
      std::error_code unreadable;
      const uintmax_t bytes = std::filesystem::file_size(options.path, unreadable);
      need.bytes = unreadable ? 0 : static_cast<int64_t>(bytes);
      if (found.dtype != Dtype::kFloat32) need.bytes /= 2;
      break;
    }
  }
  return need;
}

absl::StatusOr<std::unique_ptr<Model>> Load(const ModelOptions& options) {
  ASSIGN_OR_RETURN(const Found found, Find(options));
  const at::Device device = found.device;
  const Dtype dtype = found.dtype;
  ModelInfo info;
  info.name = ModelName(options);
  info.dtype = dtype;
  info.device = device.str();
  if (found.kind == Found::Kind::kTorchScript) return LoadScript(options, info);
  std::unique_ptr<Model> model;
  if (found.kind == Found::Kind::kNanochat) {
    ASSIGN_OR_RETURN(model, LoadNanochat(options, std::move(info), device, ScalarTypeOf(dtype)));
  } else {
    ASSIGN_OR_RETURN(model, LoadHuggingFace(options, std::move(info), device, ScalarTypeOf(dtype)));
  }
  if (absl::Status tried = TryOneToken(*model, device); !tried.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": LibTorch ", TORCH_VERSION,
                                                   " cannot compute this model in ", DtypeName(dtype), " on ",
                                                   device.str(), ": ", tried.message()));
  }
  for (const DictionaryOptions& dictionary : options.dictionaries) {
    RETURN_IF_ERROR(AddDictionary(dictionary, device, *model));
  }
  return model;
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

// Calls `load` and turns what LibTorch throws into errors about the model's path.
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

absl::StatusOr<MemoryNeed> CountWeights(const ModelOptions& options) { return Caught<MemoryNeed>(options, Count); }

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const ModelOptions& options) {
  return Caught<std::unique_ptr<Model>>(options, Load);
}

}  // namespace hookline
