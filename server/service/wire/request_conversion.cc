#include "server/service/wire/request_conversion.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/generated_enum_reflection.h"
#include "server/base/dtype_number.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// Returns INVALID_ARGUMENT, listing the enum's values but the unspecified one, if `number` is not one of them.
template <typename Enum>
absl::Status CheckEnum(absl::string_view field, Enum number) {
  const google::protobuf::EnumDescriptor& descriptor = *google::protobuf::GetEnumDescriptor<Enum>();
  if (descriptor.FindValueByNumber(number) != nullptr) return absl::OkStatus();
  std::vector<std::string> names;
  for (int i = 1; i < descriptor.value_count(); ++i) names.push_back(descriptor.value(i)->name());
  return InvalidField(field, absl::StrCat("no value has the number ", static_cast<int>(number), "; the values are ",
                                          absl::StrJoin(names, ", ")));
}

absl::StatusOr<Dtype> FromProto(v1::Dtype dtype) {
  RETURN_IF_ERROR(CheckEnum("dtype", dtype));
  return DtypeOfNumber(dtype).value_or(Dtype::kFloat32);
}

absl::StatusOr<FeedSource> FromProto(const v1::FeedSource& source) {
  RETURN_IF_ERROR(CheckEnum("feed.on_lag", source.on_lag()));
  FeedSource out;
  out.name = source.name();
  out.dataset = hookline::FromProto(source.dataset());
  out.start_when_subscribers = source.start_when_subscribers() == 0 ? 1 : source.start_when_subscribers();
  out.on_lag = source.on_lag() == v1::ON_LAG_WAIT ? OnLag::kWait : OnLag::kDetach;
  return out;
}

Selection FromProto(const v1::Selection& selection) {
  Selection out;
  out.skip_first = selection.skip_first();
  out.position_end = selection.position_end();
  out.position_stride = selection.position_stride() == 0 ? 1 : selection.position_stride();
  out.exclude_token_ids = {selection.exclude_token_ids().begin(), selection.exclude_token_ids().end()};
  out.sample_rows = selection.sample_rows();
  out.seed = selection.seed();
  out.last_only = selection.last_only();
  return out;
}

}  // namespace

DatasetSource FromProto(const v1::DatasetSource& source) {
  DatasetSource out;
  out.name = source.name();
  out.sequence_length = source.sequence_length();
  out.first_sequence = source.first_sequence();
  out.sequence_count = source.sequence_count();
  if (source.has_prepend_token_id()) out.prepend_token_id = source.prepend_token_id();
  if (source.has_shuffle_seed()) out.shuffle_seed = source.shuffle_seed();
  out.epochs = source.epochs() == 0 ? 1 : source.epochs();
  out.skip_sequences = source.skip_sequences();
  return out;
}

v1::Dtype ToProto(Dtype dtype) {
  static_assert(
      DtypeNumber(Dtype::kFloat32) == v1::DTYPE_FLOAT32 && DtypeNumber(Dtype::kBFloat16) == v1::DTYPE_BFLOAT16 &&
      DtypeNumber(Dtype::kFloat16) == v1::DTYPE_FLOAT16 && DtypeNumber(Dtype::kFloat8E4M3) == v1::DTYPE_FLOAT8_E4M3 &&
      DtypeNumber(Dtype::kInt8) == v1::DTYPE_INT8);
  return static_cast<v1::Dtype>(DtypeNumber(dtype));
}

v1::SpecialToken ToProto(const SpecialToken& token) {
  v1::SpecialToken out;
  out.set_role(token.role);
  out.set_id(token.id);
  out.set_token(token.token);
  return out;
}

absl::StatusOr<LongTexts> FromProto(v1::LongTexts long_texts) {
  RETURN_IF_ERROR(CheckEnum("text.long_texts", long_texts));
  switch (long_texts) {
    case v1::LONG_TEXTS_TRUNCATE:
      return LongTexts::kTruncate;
    case v1::LONG_TEXTS_SPLIT:
      return LongTexts::kSplit;
    default:
      return LongTexts::kRefuse;
  }
}

absl::StatusOr<CaptureRequest> FromProto(const v1::CaptureRequest& request) {
  CaptureRequest out;
  out.model = request.model();
  out.hook_points = {request.hook_points().begin(), request.hook_points().end()};
  switch (request.source_case()) {
    case v1::CaptureRequest::kTokens:
    case v1::CaptureRequest::kText:
    case v1::CaptureRequest::SOURCE_NOT_SET:
      break;
    case v1::CaptureRequest::kDataset:
      out.source = FromProto(request.dataset());
      break;
    case v1::CaptureRequest::kFeed: {
      ASSIGN_OR_RETURN(out.source, FromProto(request.feed()));
      break;
    }
  }
  if (request.has_max_activations()) out.max_activations = request.max_activations();
  out.max_activations_by_hook_point = {request.max_activations_by_hook_point().begin(),
                                       request.max_activations_by_hook_point().end()};
  ASSIGN_OR_RETURN(out.dtype, FromProto(request.dtype()));
  RETURN_IF_ERROR(CheckEnum("encoding", request.encoding()));
  out.encoding = request.encoding() == v1::ENCODING_VALUES ? Encoding::kValues : Encoding::kBytes;
  out.selection = FromProto(request.selection());
  out.provenance = request.provenance();
  out.max_message_bytes = request.max_message_bytes();
  out.deterministic = request.deterministic();
  out.resume_token = request.resume_token();
  out.record_as = request.record_as();
  out.top_k = request.top_k();
  out.statistics_only = request.statistics_only();
  return out;
}

}  // namespace hookline
