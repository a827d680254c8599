#include "server/recording/shard.h"

#include <xxhash.h>

#include <algorithm>
#include <new>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace hookline {
namespace {

using Json = nlohmann::ordered_json;

// So that a map of the file has aligned values.
constexpr size_t kHeaderAlignment = 64;

const char* SafetensorsDtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "F32";
    case Dtype::kBFloat16:
      return "BF16";
    case Dtype::kFloat16:
      return "F16";
  }
  return "";
}

}  // namespace

ShardLayout LayOutShard(const Manifest& manifest, int64_t first_row, int64_t end_row) {
  ShardLayout layout;
  layout.first_row = first_row;
  layout.end_row = end_row;
  Json header;
  header["__metadata__"] = Json{{"format", "hookline-recording"},
                                {"version", "1"},
                                {"fingerprint", manifest.fingerprint},
                                {"first_row", absl::StrCat(first_row)}};
  int64_t offset = 0;
  const auto add = [&](const std::string& name, const char* dtype, int64_t rows, int64_t width, int64_t row_bytes) {
    layout.tensors.push_back({name, rows, row_bytes, offset});
    if (rows == 0) return;
    Json shape = Json::array({rows});
    if (width > 0) shape.push_back(width);
    header[name] = Json{{"dtype", dtype}, {"shape", shape}, {"data_offsets", {offset, offset + rows * row_bytes}}};
    offset += rows * row_bytes;
  };
  const int64_t rows = end_row - first_row;
  add("provenance/sequence", "I64", rows, 0, 8);
  add("provenance/token_id", "I64", rows, 0, 8);
  add("provenance/position", "I32", rows, 0, 4);
  for (const RecordedHookPoint& point : manifest.hook_points) {
    const int64_t kept = std::clamp<int64_t>(point.max_activations - first_row, 0, rows);
    add(point.name, SafetensorsDtype(manifest.dtype), kept, point.width, point.width * DtypeBytes(manifest.dtype));
  }
  std::string json = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  json.append((kHeaderAlignment - (8 + json.size()) % kHeaderAlignment) % kHeaderAlignment, ' ');
  for (int byte = 0; byte < 8; ++byte) layout.header.push_back(static_cast<char>(json.size() >> (8 * byte) & 0xff));
  layout.header += json;
  for (ShardTensor& tensor : layout.tensors) tensor.offset += static_cast<int64_t>(layout.header.size());
  layout.file_bytes = static_cast<int64_t>(layout.header.size()) + offset;
  return layout;
}

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state_.get());
}

void Xxh3::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Xxh3::Update(absl::Span<const uint8_t> bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }

Xxh3::Digest Xxh3::digest() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
  Digest digest;
  std::copy(std::begin(canonical.digest), std::end(canonical.digest), digest.begin());
  return digest;
}

std::string Xxh3::hex() const {
  const Digest bytes = digest();
  return absl::BytesToHexString({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

std::string ShardChecksum(const ShardLayout& layout, absl::Span<const uint8_t> bytes) {
  Xxh3 whole;
  const auto add = [&](int64_t offset, int64_t length) {
    Xxh3 part;
    part.Update(bytes.subspan(offset, length));
    whole.Update(part.digest());
  };
  add(0, static_cast<int64_t>(layout.header.size()));
  for (const ShardTensor& tensor : layout.tensors) {
    if (tensor.rows > 0) add(tensor.offset, tensor.bytes());
  }
  return whole.hex();
}

}  // namespace hookline
