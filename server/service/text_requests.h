// Replaces the texts in requests by tokens before the engine sees them.
#ifndef HOOKLINE_SERVER_SERVICE_TEXT_REQUESTS_H_
#define HOOKLINE_SERVER_SERVICE_TEXT_REQUESTS_H_

#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/capture/request.h"
#include "server/dataset/sidecar.h"
#include "server/engine/engine.h"
#include "server/service/task_threads.h"
#include "server/text/model_tokenizers.h"

namespace hookline {

// Thread-safe.
class TextRequests {
 public:
  // All must outlive this; `tokenizers` and `sidecars` may be null, for a server without any.
  TextRequests(const Engine* engine, const ModelTokenizers* tokenizers, const Sidecars* sidecars)
      : engine_(engine), tokenizers_(tokenizers), sidecars_(sidecars) {}

  static bool HasText(const CaptureRequest& request) { return std::holds_alternative<TextSource>(request.source); }

  // Replaces a TextSource by its tokens, and fills in what the capture needs to know of the tokenizer. This takes
  // seconds for long texts, so call it on threads() if HasText. Errors are those of the proto CaptureRequest.text.
  absl::Status Prepare(CaptureRequest* request) const;

  // Does the same for a text that is streamed to a capture of `model`.
  absl::StatusOr<TokenBatch> Encode(const std::string& model, const TextSource& source) const;

  // Returns the tokenizer of a model by its name in a request. NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION.
  absl::StatusOr<const Tokenizer*> Find(absl::string_view model) const;

  // Returns the dataset's sidecar, or null.
  const Sidecar* SidecarOf(absl::string_view dataset) const;
  // Returns a warning about the dataset for captures of `model`, or, if that is null, of any model: the sidecar is not
  // the dataset's, or another tokenizer packed the dataset. Empty: there is none.
  std::string DatasetWarning(absl::string_view dataset, const Model* model) const;

  // The threads that encode texts, so that a slow text delays neither gRPC's threads nor captures' messages. Texts wait
  // in the form in which they came: as bytes that gRPC counts. Parsed, many short texts take twenty times as much.
  TaskThreads& threads() { return threads_; }

 private:
  absl::StatusOr<const Tokenizer*> FindOf(const Model& model) const;

  const Engine* const engine_;
  const ModelTokenizers* const tokenizers_;
  const Sidecars* const sidecars_;
  TaskThreads threads_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_TEXT_REQUESTS_H_
