#include "server/service/auth/roles.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/descriptor.h"

namespace hookline {
namespace {

constexpr std::array<absl::string_view, 5> kRoleNames = {"read", "capture", "record", "evaluate", "admin"};

// README.md repeats this table. A capture with `record_as` needs `record` besides `capture`; what belongs to another
// client needs `admin`.
constexpr MethodRole kMethodRoles[] = {
    {"/hookline.v1.ModelService/ListModels", Role::kRead},
    {"/hookline.v1.ModelService/GetModel", Role::kRead},
    {"/hookline.v1.DatasetService/ListDatasets", Role::kRead},
    {"/hookline.v1.DatasetService/GetDataset", Role::kRead},
    {"/hookline.v1.TokenizerService/Tokenize", Role::kRead},
    {"/hookline.v1.TokenizerService/Detokenize", Role::kRead},
    {"/hookline.v1.CaptureService/Capture", Role::kCapture},
    {"/hookline.v1.CaptureService/CaptureStream", Role::kCapture},
    {"/hookline.v1.CaptureService/EstimateCapture", Role::kRead},
    {"/hookline.v1.CaptureService/ListCaptures", Role::kRead},
    {"/hookline.v1.CaptureService/StopCapture", Role::kCapture},
    {"/hookline.v1.DictionaryService/ListDictionaries", Role::kRead},
    {"/hookline.v1.DictionaryService/GetDictionary", Role::kRead},
    {"/hookline.v1.DictionaryService/TopActivations", Role::kEvaluate},
    {"/hookline.v1.EvaluationService/Score", Role::kEvaluate},
    {"/hookline.v1.EvaluationService/Substitute", Role::kEvaluate},
    {"/hookline.v1.RecordingService/Persist", Role::kRecord},
    {"/hookline.v1.RecordingService/ListRecordings", Role::kRead},
    {"/hookline.v1.RecordingService/GetRecording", Role::kRead},
    {"/hookline.v1.RecordingService/StopRecording", Role::kRecord},
    {"/hookline.v1.RecordingService/DeleteRecording", Role::kRecord},
    {"/hookline.v1.RecordingService/VerifyRecording", Role::kRead},
    {"/hookline.v1.RecordingService/MergeRecordings", Role::kRecord},
    {"/hookline.v1.RecordingService/ReadRecording", Role::kRead},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::kRead},
    {"/grpc.health.v1.Health/Check", std::nullopt},
    {"/grpc.health.v1.Health/Watch", std::nullopt},
};

}  // namespace

absl::string_view RoleName(Role role) { return kRoleNames[static_cast<size_t>(role)]; }

std::optional<Role> RoleOf(absl::string_view name) {
  const auto found = std::find(kRoleNames.begin(), kRoleNames.end(), name);
  if (found == kRoleNames.end()) return std::nullopt;
  return static_cast<Role>(found - kRoleNames.begin());
}

std::string RoleNames() { return absl::StrJoin(kRoleNames, ", "); }

RoleSet RoleSet::All() {
  RoleSet all;
  all.Add(Role::kAdmin);
  return all;
}

const MethodRole* FindMethodRole(absl::string_view method) {
  const auto* const found = std::find_if(std::begin(kMethodRoles), std::end(kMethodRoles),
                                         [&](const MethodRole& entry) { return entry.method == method; });
  return found == std::end(kMethodRoles) ? nullptr : found;
}

absl::Status CheckEveryMethodHasARole(const std::vector<std::string>& services) {
  for (const std::string& name : services) {
    const auto* const service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
    if (service == nullptr) return absl::InternalError(absl::StrCat("the program has no service ", name));
    for (int i = 0; i < service->method_count(); ++i) {
      const std::string method = absl::StrCat("/", name, "/", service->method(i)->name());
      if (FindMethodRole(method) == nullptr) {
        return absl::InternalError(
            absl::StrCat(method, " has no role; give it a line in server/service/auth/roles.cc"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace hookline
