// gRPC's server for the connections of one origin: its services, which know that origin, health and reflection.
#ifndef HOOKLINE_SERVER_SERVICE_ORIGIN_SERVER_H_
#define HOOKLINE_SERVER_SERVICE_ORIGIN_SERVER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/service/auth/authenticator.h"
#include "server/service/auth/caller.h"
#include "server/service/auth/certificates.h"
#include "server/service/auth/connection_origins.h"
#include "server/service/capture_service.h"
#include "server/service/dataset_service.h"
#include "server/service/dictionary_service.h"
#include "server/service/evaluation_service.h"
#include "server/service/model_service.h"
#include "server/service/recording_service.h"
#include "server/service/reflection_service.h"
#include "server/service/server.h"
#include "server/service/shared_memory/listener.h"
#include "server/service/text_requests.h"
#include "server/service/tokenizer_service.h"

namespace hookline {

// The parts that the servers of all origins share. All limits apply to these parts, or to the engine and the recorder.
struct SharedParts {
  SharedParts(const ServerOptions& server_options, Engine* engine_of_all, Recorder* recorder_of_all,
              std::unique_ptr<Authenticator> authenticator_of_all, std::unique_ptr<Certificates> certificates_of_all);

  const ServerOptions options;
  Engine* const engine;
  Recorder* const recorder;  // null: no recordings
  const std::unique_ptr<Authenticator> authenticator;
  const std::unique_ptr<Certificates> certificates;  // null without TLS
  grpc::ResourceQuota quota;
  SharedMemoryListener memories;
  TextRequests texts;
  TaskThreads capture_wakes;
  TaskThreads score_wakes;
  std::optional<RecordingThreads> recording_threads;  // none without a recorder
};

// Returns the full names of the services of hookline.v1 that the server has.
std::vector<std::string> ServiceNames(const SharedParts& parts);

// Converts a duration to milliseconds, as gRPC's options take them.
int GrpcMilliseconds(absl::Duration duration);

class OriginServer {
 public:
  // `parts` must outlive the server. UNAVAILABLE: gRPC cannot start it. Health says NOT_SERVING at first.
  static absl::StatusOr<std::unique_ptr<OriginServer>> Start(SharedParts* parts, Origin origin);
  // Cancels the calls that still run, and waits for them.
  ~OriginServer();

  const Origin& origin() const { return origin_; }

  // Serves a connection of this origin; takes over its descriptor. Must not be called after Shutdown.
  void HandOn(int listener, int connection);

  // Sets whether health says SERVING from now on, for the empty name and for each service.
  void SetServing(bool serving);

  // Takes no more calls, and cancels those that still run after `grace`. Returns when no call is left.
  void Shutdown(absl::Duration grace);

 private:
  OriginServer(SharedParts* parts, Origin origin);
  absl::Status Build();

  SharedParts* const parts_;
  const Origin origin_;
  const CallerCheck caller_;
  CaptureServiceImpl capture_service_;
  ModelServiceImpl model_service_;
  DatasetServiceImpl dataset_service_;
  TokenizerServiceImpl tokenizer_service_;
  DictionaryServiceImpl dictionary_service_;
  EvaluationServiceImpl evaluation_service_;
  std::optional<RecordingServiceImpl> recording_service_;
  ReflectionServiceImpl reflection_service_;
  std::shared_ptr<grpc::ServerCredentials> credentials_;  // gRPC's server calls back into them
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_ORIGIN_SERVER_H_
