// The copier's thread of a replica: from a forward pass's end to the sinks' queues.
#include <algorithm>
#include <utility>

#include "server/base/steady.h"
#include "server/capture/engine_impl.h"

namespace hookline {

// Hands over what has been copied and goes on as far as the capture's window allows.
absl::StatusOr<Replica::Progress> Replica::Advance(const std::shared_ptr<Delivery>& delivery) {
  RunningCapture& capture = *delivery->capture;
  while (true) {
    const absl::Time begin = SteadyNow();
    QueueGroups(*delivery);
    if (delivery->queued == delivery->groups.size()) return Progress::kDone;
    {
      absl::MutexLock lock(&engine_->mu_);
      capture.copy_time += SteadyNow() - begin;
      const bool wanted = !capture.stop.has_value() || capture.stop->reason == StopReason::kBudget ||
                          capture.stop->reason == StopReason::kSourceEnded;
      if (!wanted || capture.cancelled) return Progress::kDone;
      if (!NextGroupFits(*delivery, options_.slab_bytes)) {
        capture.waiting = delivery;
        return Progress::kWaiting;
      }
    }
    const size_t first_group = delivery->placed;
    PlaceGroups(*delivery, options_.slab_bytes);
    absl::Status status;
    for (size_t h = 0; h < delivery->staged.size(); ++h) {
      if (delivery->staged[h] != nullptr) StartCopies(*delivery, static_cast<int>(h), first_group, &status);
    }
    auto event = transfer_->Record();
    if (event.ok()) status.Update((*event)->Wait());
    status.Update(event.status());
    if (!status.ok()) return status;
    if (delivery->placed == delivery->groups.size()) {
      absl::MutexLock lock(&engine_->mu_);
      capture.unplaced = false;
      Wake();
    }
  }
}

void Replica::QueueGroups(Delivery& delivery) {
  RunningCapture& capture = *delivery.capture;
  for (; delivery.queued < delivery.placed; ++delivery.queued) {
    std::vector<Delivery::PlacedChunk>& placed = delivery.groups[delivery.queued].chunks;
    if (!capture.cancelled) {
      std::vector<QueuedChunk> chunks = MakeChunks(delivery, delivery.queued);
      {
        absl::MutexLock lock(&engine_->mu_);
        for (const QueuedChunk& queued : chunks) {
          const CapturePlan::HookPoint& hook_point = capture.plan.hook_points[queued.chunk.hook_point];
          auto& [rows, bytes] = engine_->delivered_[{model_.get(), hook_point.index}];
          rows += queued.chunk.rows;
          bytes += queued.chunk.rows * hook_point.row_bytes;
        }
      }
      capture.queue.PushChunks(std::move(chunks));
    }
    placed.clear();
  }
}

void Replica::CopierLoop() {
  absl::Time last_reached = absl::InfinitePast();
  while (true) {
    FinishedBatch finished;
    {
      absl::MutexLock lock(&engine_->mu_);
      while (finished_.empty() && resumed_.empty() && !copier_stopping_) wake_copier_.Wait(&engine_->mu_);
      // What has waited longest goes first; both are bounded by the captures.
      if (!resumed_.empty()) {
        finished.deliveries.push_back(std::move(resumed_.front()));
        resumed_.pop_front();
      } else if (!finished_.empty()) {
        finished = std::move(finished_.front());
        finished_.pop_front();
      } else {
        return;
      }
    }
    absl::Status status;
    if (finished.event != nullptr) {
      status = finished.event->Wait();
      const absl::Time now = SteadyNow();
      absl::Duration forward_time = finished.forward_time;
      if (model_->info().device != "cpu") forward_time = now - std::max(finished.launched, last_reached);
      last_reached = now;
      absl::MutexLock lock(&engine_->mu_);
      --launched_batches_;
      load_.forward_seconds.Add(absl::ToDoubleSeconds(forward_time));
      const double rate =
          absl::ToDoubleSeconds(forward_time) / (static_cast<double>(finished.tokens) * finished.layers);
      // Recent passes count most.
      seconds_per_token_layer_ = seconds_per_token_layer_ == 0 ? rate : 0.8 * seconds_per_token_layer_ + 0.2 * rate;
      for (const auto& delivery : finished.deliveries) delivery->capture->forward_time += forward_time;
      Wake();
    }
    for (std::shared_ptr<Delivery>& delivery : finished.deliveries) {
      absl::StatusOr<Progress> progress = Progress::kDone;
      progress = status.ok() ? Advance(delivery) : absl::StatusOr<Progress>(status);
      if (progress.ok() && *progress == Progress::kWaiting) continue;
      std::shared_ptr<RunningCapture> capture = delivery->capture;
      const bool was_unplaced = delivery->placed < delivery->groups.size();
      delivery.reset();  // its slabs, and what it holds on the device
      Deferred deferred;
      absl::MutexLock lock(&engine_->mu_);
      if (was_unplaced) capture->unplaced = false;
      if (!progress.ok()) engine_->StopCapture(capture, StopReason::kError, progress.status(), &deferred);
      --capture->in_flight;
      engine_->MaybeEnd(capture, &deferred);
      Wake();
    }
  }
}

}  // namespace hookline
