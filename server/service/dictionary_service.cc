#include "server/service/dictionary_service.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status.h"
#include "server/service/exceptions.h"
#include "server/service/plain_call.h"
#include "server/service/stream_call.h"
#include "server/service/wire/top_activations_conversion.h"

namespace hookline {
namespace {

// Streams the events of one search. Latents are sent one by one at its end.
class TopActivationsCall final : public StreamCall<grpc::ServerWriteReactor<grpc::ByteBuffer>, grpc::ByteBuffer> {
 public:
  explicit TopActivationsCall(TaskThreads* threads) : StreamCall("TopActivations", threads) {}

  void Begin(Engine& engine, const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& message) {
    if (!client.ok()) return Refuse(client.status());
    absl::Status status = CatchExceptions("TopActivations", [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const v1::TopActivationsRequest request, ParsePlain<v1::TopActivationsRequest>(message));
      ASSIGN_OR_RETURN(TopActivationsPlan plan, engine.PlanTopActivations(FromProto(request)));
      ASSIGN_OR_RETURN(std::shared_ptr<TopActivationsSearch> search,
                       engine.StartTopActivations(std::move(plan), client->identity, [this] { Wake(); }));
      absl::MutexLock lock(&mutex_);
      search_ = std::move(search);
      return absl::OkStatus();
    });
    if (!status.ok()) return Refuse(std::move(status));
    Advance();
  }

 private:
  Step NextStep() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (search_ == nullptr) return Step::Wait();
    if (ended_.has_value()) return NextOfEnd();
    std::optional<TopActivationsEvent> event = search_->Next();
    if (!event.has_value()) return Step::Wait();
    if (const auto* started = std::get_if<TopActivationsStarted>(&*event)) {
      plan_ = started->plan;
      return Step::Write(Serialized(ToProto(*started)));
    }
    if (const auto* checkpoint = std::get_if<TopActivationsCheckpoint>(&*event)) {
      return Step::Write(Serialized(ToProto(*checkpoint)));
    }
    ended_ = std::move(std::get<TopActivationsEnded>(*event));
    return NextOfEnd();
  }

  Step NextOfEnd() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!ended_->status.ok()) return Step::Finish(ended_->status);
    if (next_latent_ < ended_->found.latents.size()) {
      return Step::Write(Serialized(ToProto(*plan_, ended_->found.latents[next_latent_++])));
    }
    return Step::WriteAndFinish(Serialized(ToProto(*ended_)), absl::OkStatus());
  }

  void Abandoned() override {
    std::shared_ptr<TopActivationsSearch> search;
    {
      absl::MutexLock lock(&mutex_);
      search = search_;
    }
    if (search != nullptr) search->Cancel();
  }

  void Release() override {
    std::shared_ptr<TopActivationsSearch> search;
    {
      absl::MutexLock lock(&mutex_);
      search = std::move(search_);
      ended_.reset();
    }
    if (search != nullptr) search->Cancel();
  }

  std::shared_ptr<TopActivationsSearch> search_ ABSL_GUARDED_BY(mutex_);  // null before Begin
  std::shared_ptr<const TopActivationsPlan> plan_ ABSL_GUARDED_BY(mutex_);
  std::optional<TopActivationsEnded> ended_ ABSL_GUARDED_BY(mutex_);  // whose latents are being sent
  size_t next_latent_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

grpc::ServerUnaryReactor* DictionaryServiceImpl::ListDictionaries(grpc::CallbackServerContext* context,
                                                                  const grpc::ByteBuffer* request,
                                                                  grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::ListDictionariesRequest& /*request*/,
                        v1::ListDictionariesResponse* out) {
    for (const Model* model : engine_->models()) {
      for (const AttachedDictionary& one : model->dictionaries()) *out->add_dictionaries() = ToProto(*model, one);
    }
    return absl::OkStatus();
  };
  return AnswerCall<v1::ListDictionariesRequest, v1::ListDictionariesResponse>(
      caller_, context, "/hookline.v1.DictionaryService/ListDictionaries", *request, response, fill);
}

grpc::ServerUnaryReactor* DictionaryServiceImpl::GetDictionary(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* request,
                                                               grpc::ByteBuffer* response) {
  const auto fill = [&](const AuthClient& /*client*/, const v1::GetDictionaryRequest& get,
                        v1::Dictionary* found) -> absl::Status {
    std::vector<std::string> names;
    for (const Model* model : engine_->models()) {
      for (const AttachedDictionary& one : model->dictionaries()) {
        names.push_back(one.info.name);
        if (one.info.name != get.name()) continue;
        *found = ToProto(*model, one);
        return absl::OkStatus();
      }
    }
    return absl::NotFoundError(absl::StrCat("name: no dictionary \"", get.name(), "\"; this server has ",
                                            names.empty() ? "none" : absl::StrJoin(names, ", ")));
  };
  return AnswerCall<v1::GetDictionaryRequest, v1::Dictionary>(
      caller_, context, "/hookline.v1.DictionaryService/GetDictionary", *request, response, fill);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* DictionaryServiceImpl::TopActivations(grpc::CallbackServerContext* context,
                                                                                  const grpc::ByteBuffer* request) {
  auto call = std::make_shared<TopActivationsCall>(wakes_);
  CallRecord record;
  const absl::StatusOr<AuthClient> client =
      caller_.Authorize(*context, "/hookline.v1.DictionaryService/TopActivations", &record);
  call->Keep(context, std::move(record));
  call->Begin(*engine_, client, *request);
  return call.get();
}

}  // namespace hookline
