// One capture as its client sees it: events in order, each checked against what the server granted.
//
//   std::unique_ptr<CaptureCall> call = client->Capture(request);
//   while (true) {
//     absl::StatusOr<std::optional<CaptureEvent>> event = call->Next();
//     if (!event.ok()) return event.status();
//     if (!event->has_value()) break;   // the capture ended well
//     if (auto* chunk = std::get_if<Chunk>(&**event)) Use(*chunk);
//   }
#ifndef HOOKLINE_CLIENT_CPP_CAPTURE_CALL_H_
#define HOOKLINE_CLIENT_CPP_CAPTURE_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "client/cpp/capture_response.h"
#include "client/cpp/offered_memory.h"
#include "client/cpp/pause_watch.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/sync_stream.h"
#include "hookline/v1/capture_service.pb.h"

namespace hookline::client {

// Checks that events come in the promised order and agree with `started`: known hook points, widths, dtype, rows that
// follow each other, values and provenance columns as long as the rows say.
class CaptureOrder {
 public:
  // Checks the next event and sets a chunk's hook_point_index. INTERNAL, naming the hook point and both values.
  absl::Status Check(CaptureEvent& event);

 private:
  absl::Status CheckChunk(Chunk& chunk);

  std::optional<v1::CaptureStarted> started_;
  bool ended_ = false;
  absl::flat_hash_map<std::string, int> index_;
  std::vector<int64_t> next_row_;  // per hook point; -1 before its first chunk, since a resume begins anywhere
};

// The server that calls go to.
struct Connection {
  std::shared_ptr<grpc::Channel> channel;
  std::shared_ptr<PauseWatch> pause_watch;  // that of the channel
  std::string address;                      // the server's address
  int64_t shared_memory_bytes = 0;          // memory to offer to a server on this machine for each call; 0: none
  std::string proxy;                        // what UNAVAILABLE says about the proxy on the way; empty: there is none
};

// One thread may call Next(), and one, which can be another, WriteTokens and FinishTokens; any thread may call Cancel.
class CaptureCall {
 public:
  // Calls `method` (its full path), whose answers are CaptureResponses, with an encoded request. Blocks until the
  // request is on its way or has failed, which Next() reports.
  CaptureCall(const Connection& connection, const std::string& method, const std::string& request, bool streams_tokens);
  // Cancels the call if it still runs.
  ~CaptureCall();
  CaptureCall(const CaptureCall&) = delete;
  CaptureCall& operator=(const CaptureCall&) = delete;

  // Blocks for the next event; none at the end of a capture that ended well. The server slows down while nobody reads,
  // so a caller may take as long as it likes between two events. Errors: the server's own status, with the field it
  // names (hookline::FieldOf); UNAVAILABLE for a broken connection; RESOURCE_EXHAUSTED for a message above the receive
  // limit; INTERNAL for what no Hookline server sends. Every later call returns the same error.
  absl::StatusOr<std::optional<CaptureEvent>> Next();

  // For CaptureStream: sends sequences; blocks while the server has enough. Returns false if the call is over; Next()
  // reports how it ended.
  bool WriteTokens(const v1::TokenBatch& tokens);
  // For CaptureStream: says that no more sequences follow.
  void FinishTokens();

  // Makes Next() return CANCELLED soon, or the end if that has arrived already. Idempotent.
  void Cancel();

 private:
  absl::StatusOr<std::optional<CaptureEvent>> Finish();
  // Finds the values of a chunk that says where in the shared memory they are.
  absl::Status TakeSharedData(Chunk& chunk);

  std::shared_ptr<grpc::Channel> channel_;
  const std::string proxy_;                // that of the Connection
  std::shared_ptr<OfferedMemory> memory_;  // null: there is none
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream_;
  PauseWatch::Reads reads_;
  CaptureOrder order_;
  bool finished_ = false;
  absl::Status status_;
};

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_CAPTURE_CALL_H_
