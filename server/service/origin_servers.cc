#include "server/service/origin_servers.h"

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

absl::Status OriginServers::Prepare(int slot, Origin origin) {
  absl::MutexLock lock(&mutex_);
  std::shared_ptr<OriginServer>& server = servers_[static_cast<size_t>(slot)];
  if (server != nullptr && server->origin() == origin) return absl::OkStatus();
  if (server != nullptr && ending_ >= kMaxEnding) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the calls of ", kMaxEnding, " users who have left have not ended yet"));
  }
  ASSIGN_OR_RETURN(std::shared_ptr<OriginServer> next, OriginServer::Start(parts_, origin));
  next->SetServing(serving_);
  std::swap(server, next);
  if (next == nullptr) return absl::OkStatus();
  ++ending_;
  ends_.Post([this, ended = std::move(next)]() mutable {
    ended.reset();
    --ending_;
  });
  return absl::OkStatus();
}

void OriginServers::HandOn(int slot, int listener, int connection) {
  absl::MutexLock lock(&mutex_);
  servers_[static_cast<size_t>(slot)]->HandOn(listener, connection);
}

void OriginServers::SetServing(bool serving) {
  absl::MutexLock lock(&mutex_);
  serving_ = serving;
  for (const auto& server : servers_) {
    if (server != nullptr) server->SetServing(serving);
  }
}

void OriginServers::Shutdown(absl::Duration grace) {
  std::vector<std::shared_ptr<OriginServer>> servers;
  {
    absl::MutexLock lock(&mutex_);
    servers = servers_;
  }
  // All are shut down at the same time, so that all have the same grace.
  std::vector<std::thread> threads;
  for (const auto& server : servers) {
    if (server != nullptr) threads.emplace_back([&server, grace] { server->Shutdown(grace); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace hookline
