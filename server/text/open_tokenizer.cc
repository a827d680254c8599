// Makes a tokenizer from files.
#include <algorithm>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/escape.h"
#include "server/base/hash.h"
#include "server/base/input_file.h"
#include "server/base/json.h"
#include "server/base/status.h"
#include "server/formats/unpickler.h"
#include "server/text/library.h"
#include "server/text/tokenizer.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

// Gemma's, the largest published, take 33 MB.
constexpr int64_t kMaxTokenizerBytes = int64_t{128} << 20;
constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
// Published configs nest four levels deep.
constexpr int kMaxConfigDepth = 64;
// Gemma 4's, the largest published, has 262 thousand tokens.
constexpr uint64_t kMaxTokens = uint64_t{4} << 20;
// nanochat puts this token before a document.
constexpr absl::string_view kNanochatBos = "<|bos|>";

absl::Status Unusable(const std::string& path, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(path, ": ", why));
}

std::string Fingerprint(absl::string_view file) {
  Xxh3 hash;
  hash.Update(file);
  return hash.hex();
}

absl::StatusOr<std::shared_ptr<const TokenTable>> ReadTable(const std::string& path,
                                                            const hookline_tokenizer* library) {
  const uint64_t end = hookline_tokenizer_end_id(library);
  if (end == 0 || end > kMaxTokens) {
    return Unusable(path, absl::StrCat("has ids below ", end, "; from 1 to ", kMaxTokens, " are read"));
  }
  auto table = std::make_shared<TokenTable>();
  for (uint32_t id = 0; id < end; ++id) {
    hookline_buffer token{};
    hookline_buffer error{};
    bool is_special = false;
    if (hookline_tokenizer_token(library, id, &token, &is_special, &error)) {
      table->Add(TakeText(token), is_special);
    } else {
      hookline_buffer_free(error);
      table->Add("", false);
    }
  }
  return table;
}

std::optional<SpecialToken> FindToken(const TokenTable& table, absl::string_view role, absl::string_view spelling) {
  for (uint32_t id = 0; id < table.size(); ++id) {
    if (table[id] == spelling) return SpecialToken{std::string(role), id, std::string(spelling)};
  }
  return std::nullopt;
}

// Returns null if the file does not exist.
absl::StatusOr<Json> ReadConfig(const std::string& path) {
  absl::StatusOr<std::string> text = ReadWholeFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return Json(nullptr);
  RETURN_IF_ERROR(text.status());
  absl::StatusOr<Json> json = ParseJsonObject(*text, kMaxConfigDepth);
  if (!json.ok()) return Unusable(path, json.status().message());
  return json;
}

// Returns the spelling of a token, which a config gives as a string or as an object with `content`.
std::string Spelling(const Json& config, const std::string& key) {
  const auto found = config.find(key);
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_object()) return "";
  const auto content = found->find("content");
  return content != found->end() && content->is_string() ? content->get<std::string>() : "";
}

std::optional<bool> Flag(const Json& config, const std::string& key) {
  const auto found = config.find(key);
  if (found == config.end() || !found->is_boolean()) return std::nullopt;
  return found->get<bool>();
}

// Returns the special tokens that the file's post-processor adds to a text.
absl::StatusOr<AddedTokens> AddedByProcessor(const std::string& path, const hookline_tokenizer* library,
                                             const TokenTable& table) {
  ASSIGN_OR_RETURN(const TokenizedText plain, EncodeWith(library, "a", /*add_special_tokens=*/false));
  ASSIGN_OR_RETURN(const TokenizedText with, EncodeWith(library, "a", /*add_special_tokens=*/true));
  const auto found = std::search(with.ids.begin(), with.ids.end(), plain.ids.begin(), plain.ids.end());
  if (found == with.ids.end() && !plain.ids.empty()) {
    return Unusable(path, "its post_processor changes the tokens of a text instead of adding some");
  }
  const auto tokens = [&table](auto begin, auto end) {
    std::vector<SpecialToken> special;
    for (auto id = begin; id != end; ++id) special.push_back({"", *id, std::string(table[*id])});
    return special;
  };
  return AddedTokens{tokens(with.ids.begin(), found),
                     tokens(found + static_cast<std::ptrdiff_t>(plain.ids.size()), with.ids.end())};
}

// Adds `token` to the beginning of `side` (with `at_end`, to its end) or removes it from there, as `wanted` says.
void Apply(std::optional<bool> wanted, const std::optional<SpecialToken>& token, bool at_end,
           std::vector<SpecialToken>* side) {
  if (!wanted.has_value() || !token.has_value()) return;
  const auto place = [&] { return at_end ? side->end() - (side->empty() ? 0 : 1) : side->begin(); };
  const bool is_there = !side->empty() && place()->id == token->id;
  if (*wanted == is_there) return;
  if (*wanted) {
    side->insert(at_end ? side->end() : side->begin(), *token);
  } else {
    side->erase(place());
  }
}

void SetRoles(const Tokenizer::Facts& facts, std::vector<SpecialToken>* tokens) {
  for (SpecialToken& token : *tokens) {
    for (const auto& [role, spelling] : facts.roles) {
      if (token.role.empty() && token.token == spelling) token.role = role;
    }
  }
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> OpenHuggingFace(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string json, ReadWholeFile(path, kMaxTokenizerBytes));
  hookline_buffer error{};
  Tokenizer::Library library(hookline_tokenizer_from_json(AsBytes(json), &error));
  if (library == nullptr) return Unusable(path, TakeError(error));
  ASSIGN_OR_RETURN(std::shared_ptr<const TokenTable> table, ReadTable(path, library.get()));

  const std::string folder = path.substr(0, path.rfind('/') + 1);
  ASSIGN_OR_RETURN(const Json config, ReadConfig(folder + "tokenizer_config.json"));
  ASSIGN_OR_RETURN(const Json map, ReadConfig(folder + "special_tokens_map.json"));
  Tokenizer::Facts facts;
  facts.description = absl::StrCat("tokenizer.json with ids below ", table->size());
  facts.fingerprint = Fingerprint(json);
  facts.adds_by_default = true;
  ASSIGN_OR_RETURN(facts.added, AddedByProcessor(path, library.get(), *table));
  std::optional<SpecialToken> bos;
  std::optional<SpecialToken> eos;
  for (const char* role : {"bos", "eos", "pad", "unk"}) {
    const std::string key = absl::StrCat(role, "_token");
    std::string spelling = Spelling(config, key);
    if (spelling.empty()) spelling = Spelling(map, key);
    if (spelling.empty()) continue;
    const std::optional<SpecialToken> token = FindToken(*table, role, spelling);
    if (!token.has_value()) continue;  // transformers adds such a token beyond the model's vocabulary
    facts.roles.emplace_back(role, spelling);
    if (absl::string_view(role) == "bos") bos = token;
    if (absl::string_view(role) == "eos") eos = token;
  }
  Apply(Flag(config, "add_bos_token"), bos, /*at_end=*/false, &facts.added.before);
  Apply(Flag(config, "add_eos_token"), eos, /*at_end=*/true, &facts.added.after);
  SetRoles(facts, &facts.added.before);
  SetRoles(facts, &facts.added.after);
  return std::make_unique<const Tokenizer>(std::move(library), std::move(table), std::move(facts));
}

std::vector<hookline_rank> AsRanks(const std::vector<std::pair<std::string, uint32_t>>& tokens) {
  std::vector<hookline_rank> ranks;
  ranks.reserve(tokens.size());
  for (const auto& [token, id] : tokens) ranks.push_back({AsBytes(token), id});
  return ranks;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> OpenNanochat(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string pickle, ReadWholeFile(path, static_cast<int64_t>(kMaxPickleBytes)));
  absl::StatusOr<PickledEncoding> encoding =
      UnpickleEncoding({reinterpret_cast<const uint8_t*>(pickle.data()), pickle.size()});
  if (!encoding.ok()) return Unusable(path, encoding.status().message());
  const std::vector<hookline_rank> ranks = AsRanks(encoding->ranks);
  const std::vector<hookline_rank> special = AsRanks(encoding->special_tokens);
  hookline_buffer error{};
  Tokenizer::Library library(hookline_tokenizer_from_ranks(AsBytes(encoding->pattern), ranks.data(), ranks.size(),
                                                           special.data(), special.size(), &error));
  if (library == nullptr) return Unusable(path, TakeError(error));
  ASSIGN_OR_RETURN(std::shared_ptr<const TokenTable> table, ReadTable(path, library.get()));
  Tokenizer::Facts facts;
  facts.description =
      absl::StrCat("tokenizer.pkl (", Escaped(encoding->name.substr(0, 64)), ") with ids below ", table->size());
  facts.fingerprint = Fingerprint(pickle);
  if (std::optional<SpecialToken> bos = FindToken(*table, "bos", kNanochatBos); bos.has_value()) {
    facts.roles.emplace_back("bos", kNanochatBos);
    facts.added.before.push_back(*std::move(bos));
  }
  return std::make_unique<const Tokenizer>(std::move(library), std::move(table), std::move(facts));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> OpenTokenizer(const std::string& path) {
  if (absl::EndsWith(path, ".json")) return OpenHuggingFace(path);
  if (absl::EndsWith(path, ".pkl")) return OpenNanochat(path);
  return Unusable(path, "is neither a tokenizer.json nor a tokenizer.pkl");
}

std::vector<std::string> TokenizerPlaces(const std::string& path) {
  std::string folder = path;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  if (absl::EndsWith(folder, ".pt")) {
    const size_t slash = folder.rfind('/');
    folder = slash == std::string::npos ? "." : folder.substr(0, slash);
    return {folder + "/tokenizer.json", folder + "/tokenizer.pkl"};
  }
  return {folder + "/tokenizer.json", folder + "/tokenizer.pkl", folder + "/../../tokenizer/tokenizer.pkl"};
}

}  // namespace hookline
