#include "server/engine/copier.h"

#include <algorithm>
#include <utility>

#include "server/base/steady.h"

namespace hookline {

void Copier::Join() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    wake_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Copier::Add(PassInFlight pass) {
  absl::MutexLock lock(&mu_);
  passes_.push_back(std::move(pass));
  wake_.SignalAll();
}

void Copier::Resume(CaptureId capture) {
  absl::MutexLock lock(&mu_);
  if (parked_.count(capture) == 0) return;
  if (std::find(resumable_.begin(), resumable_.end(), capture) != resumable_.end()) return;
  resumable_.push_back(capture);
  wake_.SignalAll();
}

std::map<int, Copier::Count> Copier::delivered() const {
  absl::MutexLock lock(&mu_);
  return delivered_;
}

void Copier::Run() {
  // Where this fails the thread works on the wrong device: its copies fail, and captures end with that error.
  const absl::StatusOr<std::unique_ptr<ThreadBinding>> binding = transfer_->BindThread();
  while (true) {
    Work work = NextWork();
    if (work.pass.has_value()) {
      FinishPass(*std::move(work.pass));
    } else if (!work.resumed.empty()) {
      Advance(std::move(work.resumed));
    } else {
      return;
    }
  }
}

Copier::Work Copier::NextWork() {
  absl::MutexLock lock(&mu_);
  Work work;
  while (passes_.empty() && resumable_.empty()) {
    if (stopping_) return work;
    wake_.Wait(&mu_);
  }
  // Parked deliveries have waited longest, so they go first.
  if (!resumable_.empty()) {
    const auto parked = parked_.find(resumable_.front());
    resumable_.pop_front();
    work.resumed = std::move(parked->second);
    parked_.erase(parked);
  } else {
    work.pass = std::move(passes_.front());
    passes_.pop_front();
  }
  return work;
}

void Copier::FinishPass(PassInFlight pass) {
  const absl::Status status = health_->Judge(pass.copied->Wait(), *transfer_);
  const absl::Time now = SteadyNow();
  ComputedPass computed;
  computed.forward_time = pass.forward_time.value_or(now - std::max(pass.launched, last_reached_));
  computed.tokens = pass.tokens;
  computed.layers = pass.layers;
  for (const auto& delivery : pass.deliveries) computed.captures.push_back(delivery->recipient().capture);
  last_reached_ = now;
  scheduler_->Computed(model_, computed);
  for (std::unique_ptr<Delivery>& delivery : pass.deliveries) {
    if (!status.ok()) {
      // Its rows may not have arrived, so none of them are handed over.
      scheduler_->Failed(delivery->recipient().capture, status);
      const bool was_placed = delivery->all_placed();
      Finish(std::move(delivery), was_placed);
      continue;
    }
    if (ParkBehindOthers(delivery)) continue;
    Deliveries deliveries;
    deliveries.push_back(std::move(delivery));
    Advance(std::move(deliveries));
  }
}

void Copier::Advance(Deliveries deliveries) {
  while (!deliveries.empty()) {
    Delivery& delivery = *deliveries.front();
    const CaptureId capture = delivery.recipient().capture;
    const bool was_placed = delivery.all_placed();
    const absl::StatusOr<bool> is_over = AdvanceOne(delivery);
    if (is_over.ok() && !*is_over) return Park(std::move(deliveries));
    if (!is_over.ok()) scheduler_->Failed(capture, is_over.status());
    std::unique_ptr<Delivery> finished = std::move(deliveries.front());
    deliveries.pop_front();
    Finish(std::move(finished), was_placed);
  }
}

void Copier::Finish(std::unique_ptr<Delivery> delivery, bool was_placed) {
  const CaptureId capture = delivery->recipient().capture;
  const absl::Duration copy_time = delivery->copy_time();
  const int64_t staged_bytes = delivery->Bytes();
  delivery.reset();  // gives back its slabs, and what it holds on the device
  if (!was_placed) scheduler_->Placed(capture, staged_bytes);
  scheduler_->Delivered(capture, copy_time);
}

absl::StatusOr<bool> Copier::AdvanceOne(Delivery& delivery) {
  while (true) {
    // The client still gets what was computed before its capture failed.
    HandOver(delivery);
    if (delivery.all_taken() || !IsWanted(delivery)) return true;
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
      absl::MutexLock lock(&mu_);
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
    absl::MutexLock lock(&mu_);
    parked_[capture] = std::move(deliveries);
  }
  // A call of Resume meanwhile found nothing parked, so look again. Only this thread takes parked deliveries, so
  // `first` still exists.
  if (first.NextGroupFits() || !IsWanted(first)) Resume(capture);
}

bool Copier::ParkBehindOthers(std::unique_ptr<Delivery>& delivery) {
  absl::MutexLock lock(&mu_);
  const auto parked = parked_.find(delivery->recipient().capture);
  if (parked == parked_.end()) return false;
  parked->second.push_back(std::move(delivery));
  return true;
}

}  // namespace hookline
