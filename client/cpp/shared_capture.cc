#include "client/cpp/shared_capture.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "client/cpp/merge_summaries.h"
#include "client/cpp/row_layout.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

// A block may have at least this many bytes of rows, however many blocks are open.
constexpr int64_t kLeastBlockBytes = int64_t{1} << 20;

std::string DatasetName(const v1::CaptureRequest& request) {
  return request.has_dataset() ? request.dataset().name() : std::string();
}

int64_t RowBytes(const v1::CaptureStarted& started) {
  int64_t bytes = 0;
  for (int i = 0; i < started.hook_points_size(); ++i) bytes += LayoutOf(started, i).bytes();
  return std::max<int64_t>(1, bytes);
}

}  // namespace

SharedCapture::SharedCapture(std::vector<NamedServer> servers, v1::CaptureRequest request, NextSequence next_sequence,
                             const SharingOptions& options)
    : request_(std::move(request)),
      next_sequence_(std::move(next_sequence)),
      options_(options),
      fleet_(std::move(servers), request_.model(), DatasetName(request_), options_.silence,
             [this](absl::Status status) { Fail(std::move(status)); }) {}

SharedCapture::~SharedCapture() {
  Cancel();
  for (std::thread& thread : threads_) thread.join();
}

void SharedCapture::Cancel() { Fail(absl::CancelledError("the capture was cancelled")); }

void SharedCapture::Fail(absl::Status status) {
  {
    absl::MutexLock lock(&mutex_);
    if (failure_.ok()) failure_ = std::move(status);
    changed_.NotifyAll();
  }
  fleet_.End();
}

int SharedCapture::reruns() const {
  absl::MutexLock lock(&mutex_);
  return reruns_;
}

absl::Status SharedCapture::CheckRequest() const {
  constexpr char kOneServer[] = "; give one server";
  if (request_.has_feed()) {
    return InvalidField("feed", absl::StrCat("a feed is shared by captures on one server", kOneServer));
  }
  if (!request_.record_as().empty()) {
    return InvalidField("record_as", absl::StrCat("a recording is written to one server's disk", kOneServer));
  }
  if (request_.statistics_only()) {
    return InvalidField("statistics_only", absl::StrCat("statistics are those of one server", kOneServer));
  }
  if (!request_.has_dataset() && request_.selection().sample_rows() > 0) {
    return InvalidField("selection.sample_rows",
                        "rows are sampled by a sequence's index among all, which the server of a part does not know; "
                        "use a dataset, or one server");
  }
  return absl::OkStatus();
}

template <typename Call>
absl::Status SharedCapture::OnAnyServer(Call call) {
  while (true) {
    absl::StatusOr<size_t> server = fleet_.AnyUsable();
    absl::Status status = server.ok() ? call(*server) : server.status();
    if (!status.ok() && server.ok() && fleet_.MayGoOn(*server, status)) continue;
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(failure_);  // a failure is why the fleet has ended
    return server.ok() ? OfServer(status, fleet_.address(*server)) : status;
  }
}

absl::Status SharedCapture::Start() {
  RETURN_IF_ERROR(CheckRequest());
  for (size_t server = 0; server < fleet_.size(); ++server) {
    for (size_t i = 0; i < kServerBlocks; ++i) threads_.emplace_back([this, server] { Serve(server); });
  }
  const auto away = fleet_.WaitUntilAnswered();
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(failure_);
  }
  RETURN_IF_ERROR(away.status());
  for (const auto& [server, status] : *away) {
    away_.push_back(absl::StrCat(fleet_.address(server), ": ", status.message()));
  }
  RETURN_IF_ERROR(OnAnyServer([this](size_t server) -> absl::Status {
    RETURN_IF_ERROR(AskGrant(server));
    return MakeSource(fleet_.client(server));
  }));
  threads_.emplace_back([this] { Plan(); });
  return absl::OkStatus();
}

absl::Status SharedCapture::AskGrant(size_t server) {
  Client& client = fleet_.client(server);
  // The server checks the request for the whole dataset, so that requests for blocks of it are always valid.
  if (request_.has_dataset()) RETURN_IF_ERROR(client.EstimateCapture(request_).status());
  v1::CaptureRequest request = request_;
  request.clear_source();
  const std::unique_ptr<CaptureCall> call = client.CaptureStream(request);
  ServerFleet::Call running(&fleet_, server, call.get());
  call->FinishTokens();
  ASSIGN_OR_RETURN(const std::optional<CaptureEvent> event, running.Next());
  const auto* started = event.has_value() ? std::get_if<v1::CaptureStarted>(&*event) : nullptr;
  if (started == nullptr) return absl::UnavailableError("the server ended a capture before it started");
  if (request_.deterministic() && started->batch_tokens() == 0) {
    return absl::FailedPreconditionError(
        "deterministic: the server does not say how many tokens its batches have, which decides where blocks end; "
        "update the server, or give one server");
  }
  started_ = *started;
  started_.set_next_sequence(0);
  started_.clear_resume_token();
  granted_by_ = fleet_.address(server);
  hook_points_.clear();
  for (int i = 0; i < started_.hook_points_size(); ++i) hook_points_[started_.hook_points(i).hook_point()] = i;
  row_bytes_ = RowBytes(started_);
  return absl::OkStatus();
}

absl::Status SharedCapture::MakeSource(Client& client) {
  BlockLimits limits;
  limits.tokens = options_.block_tokens;
  limits.blocks = static_cast<int64_t>(window());
  limits.bytes = std::max(kLeastBlockBytes, options_.reorder_bytes / limits.blocks);
  limits.row_bytes = row_bytes_;
  limits.batch_tokens = request_.deterministic() ? started_.batch_tokens() : 0;
  limits.is_whole_messages = request_.deterministic();
  if (!request_.has_dataset()) {
    source_ = TokenBlocks(next_sequence_, /*keeps_all_rows=*/!request_.has_selection(), limits);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(DatasetPart part, PartOf(request_.dataset(), fleet_.dataset()));
  if (request_.selection().exclude_token_ids().empty() && part.count > 0) {
    // All sequences have the same number of rows, so one of them is estimated.
    v1::CaptureRequest one = request_;
    one.clear_max_activations();
    one.clear_max_activations_by_hook_point();
    one.mutable_dataset()->set_sequence_count(1);
    one.mutable_dataset()->set_epochs(1);
    one.mutable_dataset()->set_skip_sequences(0);
    ASSIGN_OR_RETURN(const v1::EstimateCaptureResponse estimate, client.EstimateCapture(one));
    int64_t rows = 0;
    for (const v1::HookPointEstimate& point : estimate.hook_points()) rows = std::max(rows, point.rows());
    part.sequence_rows = rows;
  } else if (part.count > 0 && NeedsPlaces(part.source, limits)) {
    return InvalidField(
        "selection.exclude_token_ids",
        "only the server knows how many rows it leaves, and several servers need that number to share a shuffled "
        "dataset; give one server, or no shuffle_seed (with deterministic, also one epoch)");
  }
  started_.set_tokenizer_warning(fleet_.dataset().packing().warning());
  source_ = DatasetBlocks(part, limits);
  return absl::OkStatus();
}

int64_t SharedCapture::LargestBudget() const {
  int64_t largest = 0;
  for (const v1::HookPointGrant& point : started_.hook_points()) largest = std::max(largest, point.max_activations());
  return largest;
}

std::optional<v1::CaptureRequest> SharedCapture::RequestOf(const SequenceBlock& part, int64_t row) const {
  v1::CaptureRequest request = request_;
  request.clear_source();
  if (part.dataset.has_value()) *request.mutable_dataset() = *part.dataset;
  request.clear_hook_points();
  request.clear_max_activations();
  request.clear_max_activations_by_hook_point();
  for (const v1::HookPointGrant& point : started_.hook_points()) {
    int64_t budget = point.max_activations() - row;
    if (part.is_limited) budget = std::min(budget, *part.rows);
    if (budget <= 0) continue;
    request.add_hook_points(point.hook_point());
    (*request.mutable_max_activations_by_hook_point())[point.hook_point()] = budget;
  }
  return request.hook_points().empty() ? std::nullopt : std::make_optional(std::move(request));
}

bool SharedCapture::HasRoom(int64_t bytes) const {
  return blocks_.empty() || (blocks_.size() < window() && open_bytes_ + bytes <= options_.reorder_bytes);
}

void SharedCapture::Plan() {
  std::optional<int64_t> row = 0;  // rows before the next block; none: known once that is due
  for (int64_t number = 0;; ++number) {
    absl::StatusOr<std::optional<SequenceBlock>> part = source_->Next();
    const bool is_block = part.ok() && part->has_value();
    const int64_t most_bytes = is_block ? (*part)->most_rows * row_bytes_ : 0;
    absl::MutexLock lock(&mutex_);
    while (failure_.ok() && !HasRoom(most_bytes)) changed_.WaitUntil(mutex_, absl::InfiniteFuture());
    if (!failure_.ok()) return;
    const int64_t before = row.value_or(delivered_);
    std::optional<v1::CaptureRequest> request = is_block ? RequestOf(**part, before) : std::nullopt;
    if (!request.has_value()) {
      // After the last budget is used up, the source's errors do not matter.
      if (before < LargestBudget()) source_status_ = part.status();
      has_all_blocks_ = true;
      changed_.NotifyAll();
      return;
    }
    if (row.has_value()) row = (*part)->rows.has_value() ? std::make_optional(*row + *(*part)->rows) : std::nullopt;
    Block& block = blocks_[number];
    block.task = std::make_shared<const Task>(Task{**std::move(part), *std::move(request)});
    block.most_bytes = most_bytes;
    open_bytes_ += most_bytes;
    pending_.insert(number);
    changed_.NotifyAll();
  }
}

void SharedCapture::Serve(size_t server) {
  while (fleet_.WaitUntilUsable(server)) {
    int64_t number = 0;
    std::shared_ptr<const Task> task;
    {
      absl::MutexLock lock(&mutex_);
      while (failure_.ok() && pending_.empty()) changed_.WaitUntil(mutex_, absl::InfiniteFuture());
      if (!failure_.ok()) return;
      number = *pending_.begin();
      pending_.erase(pending_.begin());
      task = blocks_.at(number).task;
    }
    absl::StatusOr<Result> result = Run(server, *task);
    const bool runs_again = !result.ok() && fleet_.MayGoOn(server, result.status());
    absl::MutexLock lock(&mutex_);
    if (runs_again) {
      ++reruns_;
      pending_.insert(number);
    } else if (result.ok()) {
      blocks_.at(number).result = std::move(result);
    } else {
      blocks_.at(number).result =
          OfServer(NameSequenceOfSource(result.status(), task->part.first_sequence), fleet_.address(server));
    }
    changed_.NotifyAll();
  }
}

absl::StatusOr<SharedCapture::Result> SharedCapture::Run(size_t server, const Task& task) {
  Client& client = fleet_.client(server);
  const bool streams = !task.part.dataset.has_value();
  const std::unique_ptr<CaptureCall> call = streams ? client.CaptureStream(task.request) : client.Capture(task.request);
  ServerFleet::Call running(&fleet_, server, call.get());
  if (streams) {
    call->WriteTokens(task.part.tokens);
    call->FinishTokens();
  }
  Result result;
  while (true) {
    ASSIGN_OR_RETURN(std::optional<CaptureEvent> event, running.Next());
    if (!event.has_value()) break;
    if (auto* chunk = std::get_if<Chunk>(&*event)) {
      result.chunks.push_back(std::move(*chunk));
    } else if (const auto* started = std::get_if<v1::CaptureStarted>(&*event)) {
      RETURN_IF_ERROR(CheckGrant(server, task, *started));
      result.started = *started;
    } else {
      result.summary = std::get<v1::CaptureSummary>(*event);
    }
  }
  RETURN_IF_ERROR(CheckResult(task, result));
  return result;
}

absl::Status SharedCapture::CheckGrant(size_t server, const Task& task, const v1::CaptureStarted& started) const {
  const auto differs = [&](absl::string_view what, const auto& before, const auto& now) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": ", granted_by_, " grants ", before, " and ", fleet_.address(server), " ", now));
  };
  if (started.fingerprint() != started_.fingerprint()) {
    return differs("fingerprint", started_.fingerprint(), started.fingerprint());
  }
  if (started.dtype() != started_.dtype()) return differs("dtype", started_.dtype(), started.dtype());
  if (started.top_k() != started_.top_k()) return differs("top_k", started_.top_k(), started.top_k());
  if (request_.deterministic() && started.batch_tokens() != started_.batch_tokens()) {
    return differs("--max-batch-tokens, on which deterministic rows depend", started_.batch_tokens(),
                   started.batch_tokens());
  }
  if (started.hook_points_size() != task.request.hook_points_size()) {
    return differs("number of hook points", task.request.hook_points_size(), started.hook_points_size());
  }
  for (int i = 0; i < started.hook_points_size(); ++i) {
    const v1::HookPointGrant& point = started.hook_points(i);
    if (point.hook_point() != task.request.hook_points(i)) {
      return differs("hook point", task.request.hook_points(i), point.hook_point());
    }
    const int32_t width = started_.hook_points(hook_points_.at(point.hook_point())).width();
    if (point.width() != width) return differs(absl::StrCat("width of ", point.hook_point()), width, point.width());
  }
  return absl::OkStatus();
}

absl::Status SharedCapture::CheckResult(const Task& task, const Result& result) {
  const v1::StopReason reason = result.summary.stop_reason();
  if (reason != v1::STOP_REASON_BUDGET && reason != v1::STOP_REASON_SOURCE_ENDED) {
    return absl::UnavailableError("the server ended the stream without a summary of the whole block");
  }
  std::map<std::string, int64_t> rows;
  int64_t most = 0;
  for (const Chunk& chunk : result.chunks) {
    int64_t& came = rows[chunk.header().hook_point()];
    if (chunk.header().first_row() != came) {
      return absl::InternalError(absl::StrCat("the server broke the protocol: row ", chunk.header().first_row(), " of ",
                                              chunk.header().hook_point(), " came instead of row ", came));
    }
    most = std::max(most, came += chunk.header().rows());
  }
  if (result.summary.hook_points_size() != result.started.hook_points_size()) {
    return absl::InternalError(absl::StrCat("the server broke the protocol: its summary has ",
                                            result.summary.hook_points_size(), " hook points instead of ",
                                            result.started.hook_points_size()));
  }
  for (int i = 0; i < result.started.hook_points_size(); ++i) {
    const v1::HookPointGrant& point = result.started.hook_points(i);
    const int64_t came = rows[point.hook_point()];
    const int64_t asked = task.request.max_activations_by_hook_point().at(point.hook_point());
    if (point.max_activations() < asked && came == point.max_activations()) {
      return absl::FailedPreconditionError(absl::StrCat("the server grants ", came, " rows in a capture (--max-rows), ",
                                                        "fewer than the ", asked, " that a block needs of ",
                                                        point.hook_point()));
    }
    const int64_t expected = std::min(asked, task.part.rows.value_or(most));
    const v1::HookPointSummary& summary = result.summary.hook_points(i);
    const int64_t told = summary.hook_point() == point.hook_point() ? summary.rows() : -1;
    if (came != expected || came != told) {
      return absl::DataLossError(absl::StrCat(point.hook_point(), ": ", came, " rows of a block came, but ", expected,
                                              " were expected, and the server says that it sent ", told));
    }
  }
  return absl::OkStatus();
}

std::optional<Chunk> SharedCapture::Placed(const Task& task, Chunk chunk, int64_t rows_before) const {
  const int index = hook_points_.at(chunk.header().hook_point());
  const int64_t first_row = rows_before + chunk.header().first_row();
  const int64_t room = started_.hook_points(index).max_activations() - first_row;
  if (room <= 0) return std::nullopt;
  chunk.Place(first_row, task.part.first_sequence);
  chunk.KeepRows(static_cast<int32_t>(std::min<int64_t>(room, chunk.header().rows())));
  chunk.set_hook_point_index(index);
  return chunk;
}

absl::StatusOr<std::optional<Chunk>> SharedCapture::Next() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    RETURN_IF_ERROR(failure_);
    const auto due = blocks_.find(due_);
    if (delivered_ >= LargestBudget()) {
      FinishSummary(v1::STOP_REASON_BUDGET);
      return std::nullopt;
    }
    if (due == blocks_.end() && has_all_blocks_) {
      RETURN_IF_ERROR(source_status_);
      FinishSummary(v1::STOP_REASON_SOURCE_ENDED);
      return std::nullopt;
    }
    if (due == blocks_.end() || !due->second.result.has_value()) {
      changed_.WaitUntil(mutex_, absl::InfiniteFuture());
      continue;
    }
    Block& block = due->second;
    if (!block.result->ok()) return block.result->status();
    Result& result = **block.result;
    if (block.taken == result.chunks.size()) {
      FinishBlock();
      continue;
    }
    std::optional<Chunk> chunk = Placed(*block.task, std::move(result.chunks[block.taken++]), delivered_);
    if (chunk.has_value()) return chunk;
  }
}

void SharedCapture::FinishBlock() {
  const auto due = blocks_.find(due_);
  const v1::CaptureSummary& told = (*due->second.result)->summary;
  v1::CaptureSummary summary = told;
  // A block's summary lacks the hook points whose budget was used up before it.
  summary.clear_hook_points();
  for (const v1::HookPointGrant& point : started_.hook_points()) {
    summary.add_hook_points()->set_hook_point(point.hook_point());
  }
  int64_t rows = 0;
  for (const v1::HookPointSummary& point : told.hook_points()) {
    *summary.mutable_hook_points(hook_points_.at(point.hook_point())) = point;
    rows = std::max(rows, point.rows());
  }
  summary_ = due_ == 0 ? summary : MergeSummaries(started_, summary_, summary);
  delivered_ += rows;
  open_bytes_ -= due->second.most_bytes;
  blocks_.erase(due);
  ++due_;
  changed_.NotifyAll();
}

void SharedCapture::FinishSummary(v1::StopReason reason) {
  summary_.set_stop_reason(reason);
  summary_.clear_resume_token();
  // An empty source has given no summaries.
  for (int i = summary_.hook_points_size(); i < started_.hook_points_size(); ++i) {
    summary_.add_hook_points()->set_hook_point(started_.hook_points(i).hook_point());
  }
  for (int i = 0; i < started_.hook_points_size(); ++i) {
    summary_.mutable_hook_points(i)->set_rows(std::min(delivered_, started_.hook_points(i).max_activations()));
  }
}

}  // namespace hookline::client
