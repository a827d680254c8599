#include "server/engine/copier.h"

#include <algorithm>
#include <utility>

#include "server/base/steady.h"
#include "server/engine/rerun.h"

namespace hookline {

void Copier::Join() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Copier::Add(BatchInFlight batch) {
  absl::MutexLock lock(&mutex_);
  batches_.push_back(std::move(batch));
  wake_.SignalAll();
}

void Copier::Resume(CaptureId capture) {
  absl::MutexLock lock(&mutex_);
  if (parked_.count(capture) == 0) return;
  if (std::find(resumable_.begin(), resumable_.end(), capture) != resumable_.end()) return;
  resumable_.push_back(capture);
  wake_.SignalAll();
}

std::map<int, Copier::Count> Copier::delivered() const {
  absl::MutexLock lock(&mutex_);
  return delivered_;
}

void Copier::Run() {
  // If this fails, the thread works on the wrong device: its copies fail, and captures end with that error.
  const absl::StatusOr<std::unique_ptr<ThreadBinding>> binding = transfer_->BindThread();
  while (true) {
    Work work = NextWork();
    if (work.batch.has_value()) {
      FinishBatch(*std::move(work.batch));
    } else if (!work.resumed.empty()) {
      Advance(std::move(work.resumed));
    } else {
      return;
    }
  }
}

Copier::Work Copier::NextWork() {
  absl::MutexLock lock(&mutex_);
  Work work;
  while (batches_.empty() && resumable_.empty()) {
    if (stopping_) return work;
    wake_.Wait(&mutex_);
  }
  // Parked deliveries have waited longest, so they go first.
  if (!resumable_.empty()) {
    const auto parked = parked_.find(resumable_.front());
    resumable_.pop_front();
    work.resumed = std::move(parked->second);
    parked_.erase(parked);
  } else {
    work.batch = std::move(batches_.front());
    batches_.pop_front();
  }
  return work;
}

void Copier::FinishBatch(BatchInFlight batch) {
  absl::Status status;
  if (batch.copied != nullptr) status = health_->Judge(batch.copied->Wait(), *transfer_);
  const absl::Time now = SteadyNow();
  ComputedBatch computed;
  computed.forward_time = batch.forward_time.value_or(now - std::max(batch.launched, last_reached_));
  computed.tokens = batch.tokens;
  computed.layers = batch.layers;
  for (const auto& delivery : batch.deliveries) computed.captures.push_back(delivery->recipient().capture);
  last_reached_ = now;
  scheduler_->Computed(id_, computed);
  if (absl::IsUnavailable(status)) return RunAgain(std::move(batch.deliveries));
  for (std::unique_ptr<Delivery>& delivery : batch.deliveries) {
    if (!status.ok()) {
      // Its rows may not have arrived, so none of them are handed over.
      delivery->Unstage(0);
      scheduler_->Failed(delivery->recipient().capture, status);
    }
    Advance(JoinParked(std::move(delivery)));
  }
}

void Copier::RunAgain(std::vector<std::unique_ptr<Delivery>> deliveries) {
  for (const auto& delivery : deliveries) delivery->Unstage(0);
  auto rerun = std::make_shared<Rerun>();
  rerun->deliveries = std::move(deliveries);
  rerun = scheduler_->RunAgain(id_, std::move(rerun));
  if (rerun == nullptr) return;
  for (std::unique_ptr<Delivery>& delivery : rerun->deliveries) Finish(std::move(delivery));
}

void Copier::Advance(Deliveries deliveries) {
  while (!deliveries.empty()) {
    const absl::StatusOr<bool> is_over = AdvanceOne(*deliveries.front());
    if (is_over.ok() && !*is_over) return Park(std::move(deliveries));
    std::unique_ptr<Delivery> delivery = std::move(deliveries.front());
    deliveries.pop_front();
    if (absl::IsUnavailable(is_over.status())) {
      std::vector<std::unique_ptr<Delivery>> lost;
      lost.push_back(std::move(delivery));
      RunAgain(std::move(lost));
      continue;
    }
    if (!is_over.ok()) scheduler_->Failed(delivery->recipient().capture, is_over.status());
    Finish(std::move(delivery));
  }
}

void Copier::Finish(std::unique_ptr<Delivery> delivery) {
  const CaptureId capture = delivery->recipient().capture;
  Scheduler::DeliveredRows delivered;
  delivered.turn = delivery->turn();
  delivered.copy_time = delivery->copy_time();
  delivered.has_gap = !delivery->all_taken();
  const int64_t staged_bytes = delivery->staged_bytes();
  delivery.reset();
  if (staged_bytes > 0) scheduler_->Placed(id_, capture, staged_bytes);
  scheduler_->Delivered(capture, delivered);
}

absl::StatusOr<bool> Copier::AdvanceOne(Delivery& delivery) {
  while (true) {
    if (!delivery.recipient().events->TakesChunks()) return true;
    const Turn turn = scheduler_->TurnOf(delivery.recipient().capture, delivery.turn());
    if (turn == Turn::kNever) return true;
    if (turn == Turn::kWait) return false;
    // The client still gets what was computed before its capture failed.
    HandOver(delivery);
    if (delivery.all_placed() || !IsWanted(delivery)) return true;
    if (!delivery.NextGroupFits()) return false;
    absl::Status status = delivery.CopyMore(transfer_);
    absl::StatusOr<std::unique_ptr<TransferEvent>> copied = transfer_->Record();
    if (copied.ok()) status.Update((*copied)->Wait());
    status.Update(copied.status());
    if (!status.ok()) return health_->Judge(std::move(status), *transfer_);
  }
}

void Copier::HandOver(Delivery& delivery) {
  const absl::Time begin = SteadyNow();
  const Recipient& recipient = delivery.recipient();
  while (delivery.HasGroup()) {
    std::vector<QueuedChunk> chunks = delivery.TakeGroup();
    {
      absl::MutexLock lock(&mutex_);
      for (const QueuedChunk& queued : chunks) {
        const CapturePlan::HookPoint& hook_point = recipient.plan->hook_points[queued.chunk.hook_point];
        Count& count = delivered_[hook_point.index];
        count.rows += queued.chunk.rows;
        count.bytes += queued.chunk.rows * hook_point.row_bytes;
      }
    }
    if (recipient.plan->statistics_only) {
      recipient.events->AddStatistics(*recipient.plan, std::move(chunks));
    } else {
      recipient.events->PushChunks(std::move(chunks));
    }
  }
  delivery.AddCopyTime(SteadyNow() - begin);
}

bool Copier::IsWanted(const Delivery& delivery) const {
  return delivery.recipient().events->TakesChunks() && scheduler_->WantsRows(delivery.recipient().capture);
}

void Copier::Park(Deliveries deliveries) {
  const Delivery& first = *deliveries.front();
  const CaptureId capture = first.recipient().capture;
  {
    absl::MutexLock lock(&mutex_);
    parked_[capture] = std::move(deliveries);
  }
  // A call of Resume meanwhile found nothing parked, so look again. Only this thread takes parked deliveries, so
  // `first` still exists.
  if (MayGoOn(first)) Resume(capture);
}

bool Copier::MayGoOn(const Delivery& delivery) const {
  if (!delivery.recipient().events->TakesChunks()) return true;
  const Turn turn = scheduler_->TurnOf(delivery.recipient().capture, delivery.turn());
  if (turn != Turn::kNow) return turn == Turn::kNever;
  return delivery.all_placed() || !IsWanted(delivery) || delivery.NextGroupFits();
}

Copier::Deliveries Copier::JoinParked(std::unique_ptr<Delivery> delivery) {
  const CaptureId capture = delivery->recipient().capture;
  Deliveries deliveries;
  absl::MutexLock lock(&mutex_);
  if (const auto parked = parked_.find(capture); parked != parked_.end()) {
    Deliveries& others = parked->second;
    // A batch that runs again may come before others that have been computed here meanwhile.
    const auto place = std::find_if(others.begin(), others.end(), [&delivery](const std::unique_ptr<Delivery>& other) {
      return other->turn() > delivery->turn();
    });
    if (place != others.begin()) {
      others.insert(place, std::move(delivery));
      return deliveries;
    }
    deliveries = std::move(others);
    parked_.erase(parked);
    resumable_.erase(std::remove(resumable_.begin(), resumable_.end(), capture), resumable_.end());
  }
  deliveries.push_front(std::move(delivery));
  return deliveries;
}

}  // namespace hookline
