#include "client/cli/files/row_formats.h"

#include <utility>

#include "nlohmann/json.hpp"
#include "server/formats/npy.h"
#include "server/formats/pickle_writer.h"
#include "server/formats/zip_writer.h"

namespace hookline::cli {
namespace {

constexpr absl::string_view kValues = "archive/data/0";
static_assert(kPtHeaderBytes == ZipEntryHeaderBytes(kValues.size()));
static_assert(kNpyHeaderBytes == kNpyMatrixHeaderBytes);

}  // namespace

std::string NpyHeader(const RowMatrix& matrix) {
  return NpyMatrixHeader(matrix.dtype == Dtype::kFloat32 ? "<f4" : "<f2", matrix.rows, matrix.width);
}

std::string PtHeader(const RowMatrix& matrix) {
  return ZipEntryHeader(kValues, matrix.crc32, static_cast<uint64_t>(matrix.bytes()));
}

std::string PtTrailer(const RowMatrix& matrix) {
  const nlohmann::ordered_json about = {{"hook_point", matrix.hook_point}, {"shape", {matrix.rows, matrix.width}}};
  ZipTrailer trailer(kValues, matrix.crc32, static_cast<uint64_t>(matrix.bytes()));
  trailer.Add("archive/data.pkl", PickleMatrix(matrix.dtype, matrix.rows, matrix.width));
  trailer.Add("archive/byteorder", "little");
  trailer.Add("archive/version", "3\n");
  trailer.Add("archive/hookline.json", about.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  return std::move(trailer).Finish();
}

}  // namespace hookline::cli
