#include "client/cpp/capture_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/proxy.h"
#include "client/cpp/row_layout.h"
#include "client/cpp/rpc_status.h"
#include "grpcpp/impl/codegen/rpc_method.h"
#include "server/base/escape.h"
#include "server/base/shared_pieces.h"
#include "server/base/status.h"

namespace hookline::client {
namespace {

// This is far above any model, so that a broken server cannot make us index without end; servers allow less.
constexpr int kMaxHookPoints = 1 << 20;

absl::Status OutOfOrder(absl::string_view what) {
  return absl::InternalError(absl::StrCat("the server broke the protocol: ", what));
}

grpc::ByteBuffer ToByteBuffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

absl::Status CaptureOrder::Check(CaptureEvent& event) {
  if (ended_) return OutOfOrder("a message follows `summary`");
  if (auto* chunk = std::get_if<Chunk>(&event)) return CheckChunk(*chunk);
  if (auto* started = std::get_if<v1::CaptureStarted>(&event)) {
    if (started_.has_value()) return OutOfOrder("`started` came twice");
    if (started->hook_points_size() == 0 || started->hook_points_size() > kMaxHookPoints) {
      return OutOfOrder(absl::StrCat("`started` grants ", started->hook_points_size(), " hook points"));
    }
    if (!FromProto(started->dtype()).has_value()) {
      return OutOfOrder(
          absl::StrCat("dtype ", static_cast<int>(started->dtype()), " is not known to this client; update it"));
    }
    for (const v1::HookPointGrant& grant : started->hook_points()) {
      if (grant.width() < 1 || grant.max_activations() < 0 || started->top_k() < 0 ||
          started->top_k() > grant.width()) {
        return OutOfOrder(absl::StrCat("hook point ", Escaped(grant.hook_point()), " has width ", grant.width(),
                                       ", budget ", grant.max_activations(), " and top_k ", started->top_k()));
      }
      if (!index_.emplace(grant.hook_point(), static_cast<int>(index_.size())).second) {
        return OutOfOrder(absl::StrCat("hook point ", Escaped(grant.hook_point()), " is granted twice"));
      }
    }
    next_row_.assign(index_.size(), -1);
    started_ = *started;
    return absl::OkStatus();
  }
  if (!started_.has_value()) return OutOfOrder("`summary` came before `started`");
  ended_ = true;
  return absl::OkStatus();
}

absl::Status CaptureOrder::CheckChunk(Chunk& chunk) {
  if (!started_.has_value()) return OutOfOrder("a chunk came before `started`");
  const v1::ActivationChunk& header = chunk.header();
  auto found = index_.find(header.hook_point());
  if (found == index_.end())
    return OutOfOrder(absl::StrCat("chunk of unknown hook point ", Escaped(header.hook_point())));
  const v1::HookPointGrant& grant = started_->hook_points(found->second);
  auto wrong = [&header](absl::string_view what, int64_t got, int64_t wanted) {
    return OutOfOrder(
        absl::StrCat("a chunk of ", Escaped(header.hook_point()), " has ", what, " ", got, " instead of ", wanted));
  };
  if (header.rows() < 1) return wrong("rows", header.rows(), 1);
  if (header.width() != grant.width()) return wrong("width", header.width(), grant.width());
  if (header.top_k() != started_->top_k()) return wrong("top_k", header.top_k(), started_->top_k());
  if (header.dtype() != started_->dtype()) return wrong("dtype", header.dtype(), started_->dtype());
  int64_t& next_row = next_row_[found->second];
  if (next_row >= 0 && header.first_row() != next_row) return wrong("first_row", header.first_row(), next_row);
  if (header.first_row() < 0 || header.first_row() > grant.max_activations() - header.rows()) {
    return OutOfOrder(absl::StrCat("a chunk of ", Escaped(header.hook_point()), " with rows ", header.first_row(),
                                   " to ", header.first_row() + header.rows(), " exceeds the budget ",
                                   grant.max_activations()));
  }
  const RowLayout layout = LayoutOf(*started_, found->second);
  const int64_t values = header.rows() * layout.numbers(), bytes = header.rows() * layout.bytes();
  if (header.values_size() > 0) {
    if (header.values_size() != values) return wrong("values", header.values_size(), values);
    if (header.indices_size() != header.rows() * layout.top_k) {
      return wrong("indices", header.indices_size(), header.rows() * layout.top_k);
    }
    if (chunk.data_bytes() != 0) return wrong("data beside values, bytes", chunk.data_bytes(), 0);
  } else if (chunk.data_bytes() != bytes) {
    return wrong("data bytes", chunk.data_bytes(), bytes);
  }
  const bool has_provenance = header.sequence_size() + header.position_size() + header.token_id_size() > 0;
  for (int column : {header.sequence_size(), header.position_size(), header.token_id_size()}) {
    if (has_provenance && column != header.rows()) return wrong("provenance entries", column, header.rows());
  }
  next_row = header.first_row() + header.rows();
  chunk.set_hook_point_index(found->second);
  return absl::OkStatus();
}

CaptureCall::CaptureCall(const Connection& connection, const std::string& method, const std::string& request,
                         bool streams_tokens)
    : channel_(connection.channel),
      proxy_(connection.proxy),
      memory_(OfferedMemory::Offer(connection.address, connection.shared_memory_bytes)),
      reads_(connection.pause_watch) {
  if (memory_ != nullptr) context_.AddMetadata(kSharedMemoryMetadata, memory_->key());
  // Generated stubs call this with messages, not byte buffers. A call of one request is the same on the wire as one
  // that streams requests and closes after the first.
  grpc::internal::RpcMethod rpc(method.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING, channel_);
  stream_.reset(grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(channel_.get(),
                                                                                                      rpc, &context_));
  const grpc::WriteOptions options;
  if (streams_tokens) {
    stream_->Write(ToByteBuffer(request), options);
  } else {
    stream_->WriteLast(ToByteBuffer(request), options);
  }
}

CaptureCall::~CaptureCall() {
  if (finished_) return;
  context_.TryCancel();
  stream_->Finish();
}

absl::StatusOr<std::optional<CaptureEvent>> CaptureCall::Finish() {
  finished_ = true;
  reads_.End();
  status_ = NameProxy(FromGrpc(stream_->Finish()), proxy_);
  return Next();
}

absl::StatusOr<std::optional<CaptureEvent>> CaptureCall::Next() {
  if (finished_) {
    if (!status_.ok()) return status_;
    return std::nullopt;
  }
  grpc::ByteBuffer message;
  reads_.BeginRead();
  const bool has_message = stream_->Read(&message);
  reads_.EndRead();
  if (!has_message) return Finish();
  std::vector<grpc::Slice> slices;
  absl::StatusOr<CaptureEvent> event = absl::InternalError("the server sent a message that cannot be decompressed");
  if (message.Dump(&slices).ok()) event = ParseCaptureResponse(std::move(slices));
  if (event.ok()) {
    absl::Status status;
    auto* started = std::get_if<v1::CaptureStarted>(&*event);
    if (started != nullptr && memory_ != nullptr && started->max_message_bytes() > 0) {
      memory_->SetPieces(started->shared_memory_bytes() / SharedPieceBytes(started->max_message_bytes()));
    }
    if (auto* chunk = std::get_if<Chunk>(&*event); chunk != nullptr && chunk->header().has_data_offset()) {
      status = TakeSharedData(*chunk);
    }
    if (status.ok()) status = order_.Check(*event);
    if (!status.ok()) event = status;
  }
  if (!event.ok()) {
    context_.TryCancel();
    stream_->Finish();
    finished_ = true;
    reads_.End();
    status_ = event.status();
    return status_;
  }
  return std::optional<CaptureEvent>(*std::move(event));
}

absl::Status CaptureCall::TakeSharedData(Chunk& chunk) {
  const v1::ActivationChunk& header = chunk.header();
  const int64_t offset = header.data_offset();
  const int64_t memory_bytes = memory_ == nullptr ? 0 : memory_->bytes();
  const std::optional<Dtype> dtype = FromProto(header.dtype());
  const int64_t values = int64_t{header.rows()} * header.width();
  // Absurd counts are rejected before they are multiplied, so that the product cannot overflow. CaptureOrder checks
  // afterwards that the layout agrees with `started`.
  const RowLayout layout{dtype.value_or(Dtype::kFloat32), header.width(), header.top_k()};
  const int64_t bytes =
      header.rows() < 0 || layout.numbers() < 0 || values > memory_bytes ? values : header.rows() * layout.bytes();
  const uint8_t* data = memory_ == nullptr ? nullptr : memory_->Hold(offset, bytes);
  if (data == nullptr) {
    return OutOfOrder(absl::StrCat("a chunk of ", Escaped(header.hook_point()), " has data_offset ", offset, " and ",
                                   values, " values, in shared memory of ", memory_bytes, " bytes"));
  }
  std::shared_ptr<const void> hold(data, [memory = memory_, offset](const void*) { memory->Release(offset); });
  if (2 * memory_->held() <= memory_->pieces()) {
    chunk.SetData({data, static_cast<size_t>(bytes)}, std::move(hold));
    return absl::OkStatus();
  }
  // The caller keeps many chunks. This one is copied, so that the server need not wait for them before it sends
  // the rest.
  auto copy = std::make_shared<std::vector<uint8_t>>(data, data + bytes);
  chunk.SetData(*copy, copy);
  return absl::OkStatus();
}

bool CaptureCall::WriteTokens(const v1::TokenBatch& tokens) {
  v1::CaptureStreamRequest message;
  *message.mutable_tokens() = tokens;
  return stream_->Write(ToByteBuffer(message.SerializeAsString()));
}

void CaptureCall::FinishTokens() { stream_->WritesDone(); }

void CaptureCall::Cancel() { context_.TryCancel(); }

}  // namespace hookline::client
