#include "client/cpp/server_fleet.h"

#include <algorithm>
#include <optional>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/resumable_capture.h"
#include "server/base/retry_after.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

absl::Status Cancelled() { return absl::CancelledError("the capture was cancelled"); }

}  // namespace

bool IsGone(const absl::Status& status) {
  if (absl::IsCancelled(status)) return !absl::StrContains(status.message(), "StopCapture");
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

absl::Status OfServer(const absl::Status& status, const std::string& address) {
  if (status.ok() || absl::StrContains(status.message(), address)) return status;
  return absl::Status(status.code(), absl::StrCat(status.message(), " (server ", address, ")"));
}

ServerFleet::Call::Call(ServerFleet* fleet, size_t server, CaptureCall* call)
    : fleet_(fleet), server_(server), call_(call), id_(fleet->Enter(server, call)) {}

ServerFleet::Call::~Call() {
  absl::MutexLock lock(&fleet_->mutex_);
  fleet_->calls_.erase(id_);
}

absl::StatusOr<std::optional<CaptureEvent>> ServerFleet::Call::Next() {
  absl::StatusOr<std::optional<CaptureEvent>> event = call_->Next();
  absl::MutexLock lock(&fleet_->mutex_);
  Running& running = fleet_->calls_.at(id_);
  if (!event.ok() && running.is_lost) {
    return absl::UnavailableError(absl::StrCat(fleet_->address(server_), " has sent nothing and does not answer"));
  }
  running.last_sign = SteadyNow();
  if (event.ok() && event->has_value() && std::holds_alternative<Chunk>(**event)) {
    fleet_->states_[server_].failures = 0;
  }
  return event;
}

ServerFleet::ServerFleet(std::vector<NamedServer> servers, std::string model, std::string dataset,
                         absl::Duration silence, std::function<void(absl::Status)> on_failed)
    : servers_(std::move(servers)),
      model_(std::move(model)),
      dataset_name_(std::move(dataset)),
      silence_(silence),
      on_failed_(std::move(on_failed)),
      states_(servers_.size()) {
  for (size_t server = 0; server < servers_.size(); ++server) {
    watchers_.emplace_back([this, server] { Watch(server); });
  }
}

ServerFleet::~ServerFleet() {
  End();
  for (std::thread& watcher : watchers_) watcher.join();
}

v1::Dataset ServerFleet::dataset() const {
  absl::MutexLock lock(&mutex_);
  return dataset_;
}

void ServerFleet::End() {
  absl::MutexLock lock(&mutex_);
  is_over_ = true;
  for (auto& [id, running] : calls_) running.call->Cancel();
  for (const NamedServer& server : servers_) server.client->EndUnaryCalls();
  changed_.NotifyAll();
}

int64_t ServerFleet::Enter(size_t server, CaptureCall* call) {
  absl::MutexLock lock(&mutex_);
  if (is_over_) call->Cancel();
  calls_[next_call_] = {server, call, SteadyNow()};
  return next_call_++;
}

absl::Status ServerFleet::CheckSame(const std::string& what, size_t server, const std::string& fingerprint) {
  absl::MutexLock lock(&mutex_);
  const auto& [first_server, first] = first_.try_emplace(what, server, fingerprint).first->second;
  if (first == fingerprint) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(what, ": ", address(first_server), " holds the fingerprint ", first,
                                                    " and ", address(server), " holds ", fingerprint,
                                                    "; all servers of a capture must hold the same"));
}

absl::Status ServerFleet::Ask(size_t server) {
  ASSIGN_OR_RETURN(const v1::Model model, client(server).GetModel(model_));
  RETURN_IF_ERROR(CheckSame("model", server, model.fingerprint()));
  if (dataset_name_.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(v1::Dataset dataset, client(server).GetDataset(dataset_name_));
  RETURN_IF_ERROR(CheckSame("dataset", server, dataset.fingerprint()));
  absl::MutexLock lock(&mutex_);
  dataset_ = std::move(dataset);
  return absl::OkStatus();
}

void ServerFleet::Admit(size_t server) {
  const absl::Status status = Ask(server);
  if (IsGone(status)) {
    Lose(server, status);
  } else if (!status.ok()) {
    Fail(OfServer(status, address(server)));
  }
  absl::MutexLock lock(&mutex_);
  states_[server].is_asked = false;
  states_[server].is_admitted = status.ok();
  if (!status.ok()) states_[server].error = status;
  changed_.NotifyAll();
}

bool ServerFleet::WaitUntilUsable(size_t server) {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      State& state = states_[server];
      while (!is_over_ && (state.is_asked || state.retry_at > SteadyNow())) {
        changed_.WaitUntil(mutex_, state.is_asked ? absl::InfiniteFuture() : state.retry_at);
      }
      if (is_over_) return false;
      if (state.is_admitted) return true;
      state.is_asked = true;
    }
    Admit(server);
  }
}

absl::StatusOr<std::vector<std::pair<size_t, absl::Status>>> ServerFleet::WaitUntilAnswered() {
  absl::MutexLock lock(&mutex_);
  const auto has_answered = [](const State& state) { return state.is_admitted || !state.error.ok(); };
  while (!is_over_ && !std::all_of(states_.begin(), states_.end(), has_answered)) {
    changed_.WaitUntil(mutex_, absl::InfiniteFuture());
  }
  if (is_over_) return Cancelled();
  std::vector<std::pair<size_t, absl::Status>> away;
  for (size_t server = 0; server < states_.size(); ++server) {
    if (!states_[server].is_admitted) away.emplace_back(server, states_[server].error);
  }
  if (away.size() == states_.size()) return away[0].second;
  return away;
}

absl::StatusOr<size_t> ServerFleet::AnyUsable() {
  absl::MutexLock lock(&mutex_);
  while (!is_over_) {
    absl::Time next = absl::InfiniteFuture();
    for (size_t server = 0; server < states_.size(); ++server) {
      if (!states_[server].is_admitted) continue;
      if (states_[server].retry_at <= SteadyNow()) return server;
      next = std::min(next, states_[server].retry_at);
    }
    changed_.WaitUntil(mutex_, next);
  }
  return Cancelled();
}

bool ServerFleet::MayGoOn(size_t server, const absl::Status& error) {
  {
    absl::MutexLock lock(&mutex_);
    if (is_over_) return false;
    if (const std::optional<absl::Duration> wait = RetryAfterOf(error); wait.has_value()) {
      states_[server].retry_at = SteadyNow() + *wait;
      changed_.NotifyAll();
      return true;
    }
  }
  if (!IsGone(error)) return false;
  Lose(server, error);
  return true;
}

void ServerFleet::Lose(size_t server, const absl::Status& error) {
  bool is_hopeless = false;
  {
    absl::MutexLock lock(&mutex_);
    State& state = states_[server];
    if (is_over_ || (!state.is_admitted && !state.is_asked)) return;  // another call has reported the loss
    state.is_admitted = false;
    state.error = error;
    ++state.failures;
    state.retry_at = SteadyNow() + ReconnectDelay(state.failures);
    changed_.NotifyAll();
    is_hopeless = std::all_of(states_.begin(), states_.end(),
                              [](const State& one) { return !one.is_admitted && one.failures > kMaxReconnects; });
  }
  if (is_hopeless) Fail(error);
}

void ServerFleet::Fail(const absl::Status& error) {
  {
    absl::MutexLock lock(&mutex_);
    if (is_over_ || std::exchange(has_failed_, true)) return;
  }
  on_failed_(error);
}

void ServerFleet::Watch(size_t server) {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const absl::Time due = SteadyNow() + silence_ / 4;
      while (!is_over_ && SteadyNow() < due) changed_.WaitUntil(mutex_, due);
      if (is_over_) return;
      if (!IsSilent(server)) continue;
    }
    Probe(server);
  }
}

bool ServerFleet::IsSilent(size_t server) const {
  const absl::Time longest = SteadyNow() - silence_;
  return std::any_of(calls_.begin(), calls_.end(), [&](const auto& entry) {
    return entry.second.server == server && entry.second.last_sign < longest;
  });
}

void ServerFleet::Probe(size_t server) {
  const absl::Status status = Ask(server);
  if (!status.ok() && !IsGone(status)) {
    Fail(OfServer(status, address(server)));
    return;
  }
  absl::MutexLock lock(&mutex_);
  for (auto& [id, running] : calls_) {
    if (running.server != server) continue;
    running.last_sign = SteadyNow();
    if (status.ok()) continue;
    running.is_lost = true;
    running.call->Cancel();
  }
}

}  // namespace hookline::client
