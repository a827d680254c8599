#include "server/service/merge_call.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/service/plain_call.h"
#include "server/service/wire/recording_conversion.h"

namespace hookline {
namespace {

// Merges share a thread and a count with verifications, whose limit is the same.
constexpr int kMaxMerges = 256;

}  // namespace

void MergeCall::Begin(const absl::StatusOr<AuthClient>& client, const grpc::ByteBuffer& request) {
  if (!client.ok()) return Refuse(client.status());
  if (others_ >= kMaxMerges) {
    return Refuse(absl::ResourceExhaustedError(
        absl::StrCat(others_, " merges and verifications run or wait, of at most ", kMaxMerges, "; try again later")));
  }
  auto parsed = ParsePlain<v1::MergeRecordingsRequest>(request);
  if (!parsed.ok()) return Refuse(parsed.status());
  Post([this, merge = *std::move(parsed), identity = client->identity] { Open(merge, identity); });
}

void MergeCall::Open(const v1::MergeRecordingsRequest& request, const ClientIdentity& client) {
  auto merge = recorder_->Merge(request.name(), {request.parts().begin(), request.parts().end()}, client);
  if (!merge.ok()) return Refuse(merge.status());
  merge_ = *std::move(merge);
  {
    absl::MutexLock lock(&mutex_);
    progress_.set_total_bytes(merge_->manifest().bytes());
    progress_.set_total_shards(static_cast<int32_t>(merge_->manifest().shards.size()));
  }
  Work();
}

void MergeCall::Work() {
  bool is_over;
  {
    absl::MutexLock lock(&mutex_);
    is_over = finished();
  }
  if (is_over) merge_.reset();
  if (merge_ == nullptr) return;
  const absl::StatusOr<bool> done = merge_->Advance();
  if (!done.ok()) {
    merge_.reset();
    return Refuse(done.status());
  }
  bool goes_on;
  {
    absl::MutexLock lock(&mutex_);
    has_news_ = *done || progress_.shards() != merge_->checked_shards();
    progress_.set_shards(static_cast<int32_t>(merge_->checked_shards()));
    progress_.set_bytes(merge_->checked_bytes());
    if (*done) *progress_.mutable_recording() = ToProto(merge_->manifest(), RecordingView::kFull);
    goes_on = !has_news_;
  }
  if (*done) merge_.reset();
  if (goes_on) Post([this] { Work(); });
}

MergeCall::Step MergeCall::NextStep() {
  if (!has_news_) return Step::Wait();
  has_news_ = false;
  if (progress_.has_recording()) return Step::WriteAndFinish(Serialized(progress_), absl::OkStatus());
  return Step::Write(Serialized(progress_));
}

void MergeCall::Written() {
  Post([this] { Work(); });
}

}  // namespace hookline
