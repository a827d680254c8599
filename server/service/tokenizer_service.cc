#include "server/service/tokenizer_service.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/base/status.h"
#include "server/capture/text_source.h"
#include "server/service/plain_call.h"

namespace hookline {
namespace {

// gRPC clients accept no larger message by default.
constexpr size_t kMaxAnswerBytes = size_t{4} << 20;
// A token takes at least this in an answer: an id, two offsets, a flag, and a spelling with its tag and length.
constexpr size_t kMinTokenBytes = 6;

absl::Status TooLarge(size_t bytes, absl::string_view what) {
  return absl::ResourceExhaustedError(absl::StrCat("the answer would take ", bytes, " bytes or more; at most ",
                                                   kMaxAnswerBytes, " are sent; send fewer or shorter ", what));
}

absl::Status Fill(const TokenizedText& text, const TokenTable& table, v1::TokenizedText* out) {
  if (text.ids.size() * kMinTokenBytes > kMaxAnswerBytes) return TooLarge(text.ids.size() * kMinTokenBytes, "texts");
  size_t bytes = 0;
  for (const uint32_t id : text.ids) bytes += table[id].size();
  if (bytes > kMaxAnswerBytes) return TooLarge(bytes, "texts");
  *out->mutable_ids() = {text.ids.begin(), text.ids.end()};
  *out->mutable_starts() = {text.begins.begin(), text.begins.end()};
  *out->mutable_ends() = {text.ends.begin(), text.ends.end()};
  for (const uint32_t id : text.ids) {
    out->add_tokens(std::string(table[id]));
    out->add_special(table.is_special(id));
  }
  return absl::OkStatus();
}

absl::Status FillTokens(const TextRequests& texts, const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, texts.Find(request.model()));
  TextSource options;
  if (request.has_add_special_tokens()) options.add_special_tokens = request.add_special_tokens();
  absl::StatusOr<AddedTokens> added = AddedTo(options, *tokenizer);
  if (!added.ok()) {
    return InvalidField("add_special_tokens", "is true, but the tokenizer's files name no token to add; leave it out");
  }
  if (request.texts().empty()) return InvalidField("texts", "is empty; send at least one text");
  size_t bytes = 0;
  for (int i = 0; i < request.texts_size(); ++i) {
    const absl::StatusOr<TokenizedText> text = tokenizer->Encode(request.texts(i), *added);
    if (!text.ok()) return InvalidField(absl::StrCat("texts[", i, "]"), text.status().message());
    v1::TokenizedText* out = response->add_sequences();
    RETURN_IF_ERROR(Fill(*text, *tokenizer->table(), out));
    bytes += out->ByteSizeLong();
    if (bytes > kMaxAnswerBytes) return TooLarge(bytes, "texts");
  }
  return absl::OkStatus();
}

absl::Status FillTexts(const TextRequests& texts, const v1::DetokenizeRequest& request,
                       v1::DetokenizeResponse* response) {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, texts.Find(request.model()));
  if (request.sequences().empty()) return InvalidField("sequences", "is empty; send at least one sequence");
  const bool skip = !request.has_skip_special_tokens() || request.skip_special_tokens();
  size_t bytes = 0;
  for (int i = 0; i < request.sequences_size(); ++i) {
    const auto& ids = request.sequences(i).ids();
    for (int t = 0; t < ids.size(); ++t) {
      if (tokenizer->table()->has(ids[t])) {
        bytes += (*tokenizer->table())[ids[t]].size();
        continue;
      }
      return InvalidField(
          absl::StrCat("sequences[", i, "].ids[", t, "]"),
          absl::StrCat("the tokenizer has no token ", ids[t], "; its ids are below ", tokenizer->table()->size()));
    }
    if (bytes > kMaxAnswerBytes) return TooLarge(bytes, "sequences");
    absl::StatusOr<std::string> text = tokenizer->Decode({ids.data(), static_cast<size_t>(ids.size())}, skip);
    if (!text.ok()) return InvalidField(absl::StrCat("sequences[", i, "]"), text.status().message());
    response->add_texts(*std::move(text));
  }
  if (response->ByteSizeLong() > kMaxAnswerBytes) return TooLarge(response->ByteSizeLong(), "sequences");
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* TokenizerServiceImpl::Tokenize(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  const auto fill = [texts = texts_](const AuthClient& /*client*/, const v1::TokenizeRequest& tokenize,
                                     v1::TokenizeResponse* out) { return FillTokens(*texts, tokenize, out); };
  return AnswerCallOn<v1::TokenizeRequest, v1::TokenizeResponse>(
      &texts_->threads(), caller_, context, "/hookline.v1.TokenizerService/Tokenize", *request, response, fill);
}

grpc::ServerUnaryReactor* TokenizerServiceImpl::Detokenize(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  const auto fill = [texts = texts_](const AuthClient& /*client*/, const v1::DetokenizeRequest& detokenize,
                                     v1::DetokenizeResponse* out) { return FillTexts(*texts, detokenize, out); };
  return AnswerCallOn<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      &texts_->threads(), caller_, context, "/hookline.v1.TokenizerService/Detokenize", *request, response, fill);
}

}  // namespace hookline
