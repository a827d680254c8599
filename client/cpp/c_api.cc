#include "client/cpp/c_api.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cpp/batched_capture.h"
#include "client/cpp/client.h"
#include "client/cpp/resumable_capture.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"

using hookline::client::BatchBuffers;
using hookline::client::BatchedCapture;
using hookline::client::Client;
using hookline::client::ClientOptions;

struct hookline_client {
  std::unique_ptr<Client> client;
};

struct hookline_capture {
  std::unique_ptr<BatchedCapture> capture;
};

namespace {

// Copies as much of `text` as fits with its zero byte.
template <size_t kCapacity>
void CopyText(const std::string& text, char (&out)[kCapacity]) {
  size_t bytes = std::min(text.size(), kCapacity - 1);
  // A character that does not fit whole is left out; its bytes after the first begin with the bits 10.
  while (bytes < text.size() && bytes > 0 && (text[bytes] & 0xC0) == 0x80) --bytes;
  std::memcpy(out, text.data(), bytes);
  out[bytes] = '\0';
}

int32_t Fail(const absl::Status& status, hookline_error* error) {
  error->code = static_cast<int32_t>(status.code());
  CopyText(hookline::FieldOf(status), error->field);
  CopyText(std::string(status.message()), error->message);
  const std::optional<absl::Duration> retry_after = hookline::RetryAfterOf(status);
  error->retry_delay_ms = retry_after.has_value() ? std::max<int64_t>(1, absl::ToInt64Milliseconds(*retry_after)) : 0;
  return HOOKLINE_ERROR;
}

absl::Duration Timeout(int64_t milliseconds) {
  return milliseconds < 0 ? absl::InfiniteDuration() : absl::Milliseconds(milliseconds);
}

// Runs `function`, in which only memory can run out, without letting an exception reach a caller in C.
template <typename Function>
int32_t Guard(hookline_error* error, Function function) {
  try {
    return function();
  } catch (const std::exception& exception) {
    return Fail(absl::ResourceExhaustedError(exception.what()), error);
  }
}

}  // namespace

int32_t hookline_abi_version(void) { return HOOKLINE_ABI_VERSION; }

int32_t hookline_client_connect(const char* address, int64_t max_receive_bytes, int64_t shared_memory_bytes,
                                hookline_client** client, hookline_error* error) {
  const hookline_security none = {};
  return hookline_client_connect_securely(address, max_receive_bytes, shared_memory_bytes, &none, client, error);
}

int32_t hookline_client_connect_securely(const char* address, int64_t max_receive_bytes, int64_t shared_memory_bytes,
                                         const hookline_security* security, hookline_client** client,
                                         hookline_error* error) {
  return Guard(error, [&]() -> int32_t {
    const auto text = [](const char* given) { return std::string(given == nullptr ? "" : given); };
    ClientOptions options;
    options.tls = {security->tls != 0, text(security->ca_path), text(security->cert_path), text(security->key_path)};
    options.token = text(security->token);
    if (max_receive_bytes != 0) options.max_receive_bytes = max_receive_bytes;
    if (shared_memory_bytes != -1) options.shared_memory_bytes = shared_memory_bytes;
    absl::StatusOr<std::unique_ptr<Client>> connected = Client::Connect(address, options);
    if (!connected.ok()) return Fail(connected.status(), error);
    *client = new hookline_client{*std::move(connected)};
    return HOOKLINE_OK;
  });
}

void hookline_client_free(hookline_client* client) { delete client; }

int32_t hookline_capture_start(hookline_client* client, int32_t method, const void* request, size_t request_bytes,
                               hookline_capture** capture, hookline_error* error) {
  static constexpr const char* kMethods[] = {hookline::client::kCaptureMethod, hookline::client::kCaptureStreamMethod,
                                             hookline::client::kReadRecordingMethod};
  return Guard(error, [&]() -> int32_t {
    if (method < HOOKLINE_CAPTURE || method > HOOKLINE_READ_RECORDING) {
      return Fail(absl::InvalidArgumentError(absl::StrCat("method: ", method, " is not one of 0, 1, 2")), error);
    }
    *capture = new hookline_capture{std::make_unique<BatchedCapture>(
        client->client->connection(), kMethods[method], std::string(static_cast<const char*>(request), request_bytes),
        /*streams_tokens=*/method == HOOKLINE_CAPTURE_STREAM)};
    return HOOKLINE_OK;
  });
}

int32_t hookline_capture_started(hookline_capture* capture, int64_t timeout_ms, const void** message, size_t* bytes,
                                 hookline_error* error) {
  return Guard(error, [&]() -> int32_t {
    absl::StatusOr<const std::string*> started = capture->capture->Started(Timeout(timeout_ms));
    if (!started.ok()) return Fail(started.status(), error);
    if (*started == nullptr) return HOOKLINE_TIMEOUT;
    *message = (*started)->data();
    *bytes = (*started)->size();
    return HOOKLINE_OK;
  });
}

int32_t hookline_capture_submit(hookline_capture* capture, const hookline_batch* batch, hookline_error* error) {
  return Guard(error, [&]() -> int32_t {
    BatchBuffers buffers;
    buffers.rows = batch->rows;
    buffers.sequence = batch->sequence;
    buffers.position = batch->position;
    buffers.token_id = batch->token_id;
    const int hook_points = capture->capture->hook_points();
    for (int i = 0; i < hook_points; ++i) buffers.data.push_back(static_cast<uint8_t*>(batch->data[i]));
    absl::Status status = capture->capture->Submit(buffers);
    return status.ok() ? HOOKLINE_OK : Fail(status, error);
  });
}

int32_t hookline_capture_wait(hookline_capture* capture, int64_t timeout_ms, int64_t* rows, hookline_error* error) {
  return Guard(error, [&]() -> int32_t {
    absl::StatusOr<BatchedCapture::WaitResult> result = capture->capture->Wait(Timeout(timeout_ms), rows);
    if (!result.ok()) return Fail(result.status(), error);
    switch (*result) {
      case BatchedCapture::WaitResult::kBatch:
        return HOOKLINE_OK;
      case BatchedCapture::WaitResult::kEnd:
        return HOOKLINE_END;
      case BatchedCapture::WaitResult::kTimeout:
        break;
    }
    return HOOKLINE_TIMEOUT;
  });
}

void hookline_capture_progress(hookline_capture* capture, int64_t* submitted, int64_t* returned) {
  const BatchedCapture::Progress progress = capture->capture->progress();
  *submitted = progress.submitted;
  *returned = progress.returned;
}

int32_t hookline_capture_token_text(hookline_capture* capture, uint32_t token_id, const void** text, size_t* bytes) {
  const std::string* found = capture->capture->TokenText(token_id);
  if (found == nullptr) return HOOKLINE_TIMEOUT;
  *text = found->data();
  *bytes = found->size();
  return HOOKLINE_OK;
}

size_t hookline_capture_resume_token(hookline_capture* capture, void* token, size_t capacity) {
  const std::string current = capture->capture->resume_token();
  if (token != nullptr) std::memcpy(token, current.data(), std::min(capacity, current.size()));
  return current.size();
}

int32_t hookline_capture_resume(hookline_capture* capture, const void* request, size_t request_bytes,
                                hookline_error* error) {
  return Guard(error, [&]() -> int32_t {
    absl::Status status = capture->capture->Resume(std::string(static_cast<const char*>(request), request_bytes));
    return status.ok() ? HOOKLINE_OK : Fail(status, error);
  });
}

int32_t hookline_capture_write_tokens(hookline_capture* capture, const uint32_t* ids, const int64_t* lengths,
                                      int64_t sequences, hookline_error* error) {
  return Guard(error, [&]() -> int32_t {
    hookline::v1::TokenBatch tokens;
    for (int64_t i = 0; i < sequences; ++i) {
      if (lengths[i] < 0) {
        return Fail(absl::InvalidArgumentError(absl::StrCat("lengths[", i, "]: ", lengths[i], " is below 0")), error);
      }
      tokens.add_sequences()->mutable_ids()->Add(ids, ids + lengths[i]);
      ids += lengths[i];
    }
    return capture->capture->WriteTokens(tokens) ? HOOKLINE_OK : HOOKLINE_END;
  });
}

void hookline_capture_finish_tokens(hookline_capture* capture) { capture->capture->FinishTokens(); }

int64_t hookline_reconnect_delay_ms(int32_t attempt) {
  if (attempt > hookline::client::kMaxReconnects) return -1;
  return absl::ToInt64Milliseconds(hookline::client::ReconnectDelay(attempt));
}

int32_t hookline_capture_summary(hookline_capture* capture, const void** message, size_t* bytes) {
  const std::string* summary = capture->capture->Summary();
  if (summary == nullptr) return HOOKLINE_TIMEOUT;
  *message = summary->data();
  *bytes = summary->size();
  return HOOKLINE_OK;
}

void hookline_capture_cancel(hookline_capture* capture) { capture->capture->Cancel(); }

void hookline_capture_free(hookline_capture* capture) { delete capture; }
