// Where everything stands in a shard, and its checksum; see FORMAT.md. There is one layout for given rows of a given
// recording, so writer and reader both compute it, and a reader need not trust a header.
#ifndef HOOKLINE_SERVER_RECORDING_SHARD_H_
#define HOOKLINE_SERVER_RECORDING_SHARD_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "server/recording/manifest.h"

struct XXH3_state_s;

namespace hookline {

// The tensors before those of the hook points.
enum ProvenanceTensor { kSequenceTensor, kTokenIdTensor, kPositionTensor, kProvenanceTensors };

// Bytes of a row's provenance in a shard.
inline constexpr int64_t kProvenanceRowBytes = 8 + 8 + 4;

struct ShardTensor {
  std::string name;
  int64_t rows = 0;  // 0: left out of the file
  int64_t row_bytes = 0;
  int64_t offset = 0;  // in the file

  int64_t bytes() const { return rows * row_bytes; }
};

struct ShardLayout {
  int64_t first_row = 0;
  int64_t end_row = 0;
  std::string header;  // its length and padding included
  // kProvenanceTensors, then one for each hook point of the manifest.
  std::vector<ShardTensor> tensors;
  int64_t file_bytes = 0;
};

// first_row is a multiple of manifest.shard_rows, end_row is above it and at most manifest.max_rows().
ShardLayout LayOutShard(const Manifest& manifest, int64_t first_row, int64_t end_row);

// XXH3-128 of bytes that come in pieces. One thread at a time.
class Xxh3 {
 public:
  using Digest = std::array<uint8_t, 16>;  // canonical: big-endian

  Xxh3();
  void Update(absl::Span<const uint8_t> bytes);
  Digest digest() const;
  std::string hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

// The checksum of a shard whose file is `bytes`, which has the layout's length.
std::string ShardChecksum(const ShardLayout& layout, absl::Span<const uint8_t> bytes);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_RECORDING_SHARD_H_
