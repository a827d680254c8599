#include "server/service/auth/auth_file.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/escape.h"
#include "server/base/json.h"
#include "server/base/status.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

// There is room for tens of thousands of clients; a larger file is not an auth file.
constexpr int64_t kMaxFileBytes = int64_t{4} << 20;
// An auth file is three levels deep; the parser must not follow a hostile one deeper.
constexpr int kMaxDepth = 8;
constexpr int64_t kMaxWeight = 1000;
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxSanBytes = 1024;

bool IsClientName(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-' || c == '@';
  });
}

// Reads one object of the file; every error begins with the object's place in the file.
class Reader {
 public:
  Reader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  absl::Status CheckFields(std::initializer_list<absl::string_view> known) const {
    if (!object_.is_object()) return Wrong("must be an object");
    for (const auto& [field, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), field) == known.end()) {
        return Wrong(absl::StrCat("has the unknown field ", Quoted(field), "; the known fields are ",
                                  absl::StrJoin(known, ", ")));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Text(const char* field, std::string* out) const {
    const auto found = object_.find(field);
    if (found == object_.end()) return absl::OkStatus();
    if (!found->is_string()) return Wrong(absl::StrCat(field, " must be a string"));
    *out = found->get<std::string>();
    return absl::OkStatus();
  }

  absl::Status Integer(const char* field, int64_t least, int64_t most, std::optional<int64_t>* out) const {
    const auto found = object_.find(field);
    if (found == object_.end()) return absl::OkStatus();
    *out = JsonInteger(*found, least, most);
    if (!out->has_value()) {
      return Wrong(absl::StrCat(field, " is ", Quoted(found->dump(-1, ' ', false, Json::error_handler_t::replace)),
                                "; it must be an integer from ", least, " to ", most));
    }
    return absl::OkStatus();
  }

  const Json* Find(const char* field) const {
    const auto found = object_.find(field);
    return found == object_.end() ? nullptr : &*found;
  }

  absl::Status Wrong(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(where_, ": ", what));
  }

 private:
  const Json& object_;
  const std::string where_;
};

absl::Status ReadQuotas(const Json& object, const std::string& where, ClientQuotas* quotas) {
  const Reader reader(object, absl::StrCat(where, ".quotas"));
  RETURN_IF_ERROR(reader.CheckFields({"captures", "waiting", "slabs", "tokens_per_second", "burst_tokens", "rows",
                                      "recordings", "recording_bytes", "feeds"}));
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  RETURN_IF_ERROR(reader.Integer("captures", 0, kMost, &quotas->captures));
  RETURN_IF_ERROR(reader.Integer("waiting", 0, kMost, &quotas->waiting));
  RETURN_IF_ERROR(reader.Integer("slabs", 0, kMost, &quotas->slabs));
  RETURN_IF_ERROR(reader.Integer("tokens_per_second", 1, kMost, &quotas->tokens_per_second));
  RETURN_IF_ERROR(reader.Integer("burst_tokens", 1, kMost, &quotas->burst_tokens));
  RETURN_IF_ERROR(reader.Integer("rows", 1, kMost, &quotas->rows));
  RETURN_IF_ERROR(reader.Integer("recordings", 0, kMost, &quotas->recordings));
  RETURN_IF_ERROR(reader.Integer("recording_bytes", 0, kMost, &quotas->recording_bytes));
  return reader.Integer("feeds", 0, kMost, &quotas->feeds);
}

absl::Status ReadRoles(const Reader& reader, RoleSet* roles) {
  const Json* const list = reader.Find("roles");
  if (list == nullptr || !list->is_array()) {
    return reader.Wrong(absl::StrCat("roles must be a list of ", RoleNames()));
  }
  for (const Json& entry : *list) {
    const std::optional<Role> role = entry.is_string() ? RoleOf(entry.get<std::string>()) : std::nullopt;
    if (!role.has_value()) {
      return reader.Wrong(absl::StrCat("roles has ", Quoted(entry.dump(-1, ' ', false, Json::error_handler_t::replace)),
                                       ", which is not one of ", RoleNames()));
    }
    roles->Add(*role);
  }
  return absl::OkStatus();
}

absl::Status ReadToken(const Reader& reader, std::optional<Sha256>* token) {
  if (reader.Find("token_sha256") == nullptr) return absl::OkStatus();
  std::string digits;
  RETURN_IF_ERROR(reader.Text("token_sha256", &digits));
  if (digits.size() != 2 * sizeof(Sha256) || !std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) {
    return reader.Wrong(absl::StrCat("token_sha256 has ", digits.size(),
                                     " characters; it must be the 64 hexadecimal digits that `hookline token` prints"));
  }
  const std::string bytes = absl::HexStringToBytes(digits);
  std::memcpy(token->emplace().data(), bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::StatusOr<AuthClient> ReadClient(const Json& object, size_t index) {
  std::string where = absl::StrCat("clients[", index, "]");
  AuthClient client;
  RETURN_IF_ERROR(
      Reader(object, where).CheckFields({"name", "token_sha256", "san", "uid", "roles", "weight", "quotas"}));
  std::string name;
  RETURN_IF_ERROR(Reader(object, where).Text("name", &name));
  if (!IsClientName(name)) {
    return Reader(object, where)
        .Wrong(absl::StrCat("name is ", Quoted(name), "; it must be 1 to ", kMaxNameBytes,
                            " of the characters A-Z a-z 0-9 . _ - @"));
  }
  absl::StrAppend(&where, " (", name, ")");
  const Reader reader(object, where);
  client.identity.name = name;
  client.identity.is_authenticated = true;
  RETURN_IF_ERROR(ReadRoles(reader, &client.roles));
  client.identity.is_admin = client.roles.Has(Role::kAdmin);
  RETURN_IF_ERROR(ReadToken(reader, &client.token));
  RETURN_IF_ERROR(reader.Text("san", &client.san));
  if (reader.Find("san") != nullptr && (client.san.empty() || client.san.size() > kMaxSanBytes)) {
    return reader.Wrong(absl::StrCat("san must have 1 to ", kMaxSanBytes, " bytes: a URI or a DNS name"));
  }
  RETURN_IF_ERROR(reader.Integer("uid", 0, std::numeric_limits<uint32_t>::max() - 1, &client.uid));
  if (!client.token.has_value() && client.san.empty() && !client.uid.has_value()) {
    return reader.Wrong("has no credential; give token_sha256, san or uid");
  }
  std::optional<int64_t> weight;
  RETURN_IF_ERROR(reader.Integer("weight", 1, kMaxWeight, &weight));
  client.identity.weight = weight.value_or(1);
  if (const Json* quotas = reader.Find("quotas"); quotas != nullptr) {
    RETURN_IF_ERROR(ReadQuotas(*quotas, where, &client.identity.quotas));
  }
  return client;
}

// A credential that two clients share would let one of them act as the other.
absl::Status CheckDistinct(const std::vector<AuthClient>& clients) {
  std::set<std::string> names;
  std::set<Sha256> tokens;
  std::set<std::string> sans;
  std::set<int64_t> uids;
  for (const AuthClient& client : clients) {
    const auto twice = [&](absl::string_view field) {
      return absl::InvalidArgumentError(
          absl::StrCat("clients: ", client.identity.name, " has the ", field, " of an earlier client"));
    };
    if (!names.insert(client.identity.name).second) return twice("name");
    if (client.token.has_value() && !tokens.insert(*client.token).second) return twice("token_sha256");
    if (!client.san.empty() && !sans.insert(client.san).second) return twice("san");
    if (client.uid.has_value() && !uids.insert(*client.uid).second) return twice("uid");
  }
  return absl::OkStatus();
}

// Parses JSON, and also refuses what nlohmann accepts: deep nesting, and a field given twice in one object.
absl::StatusOr<Json> ParseJson(absl::string_view text) {
  std::vector<std::set<std::string>> fields;
  std::string problem;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth && problem.empty()) problem = absl::StrCat("it is more than ", kMaxDepth, " levels deep");
    if (event == Json::parse_event_t::object_start) fields.emplace_back();
    if (event == Json::parse_event_t::object_end) fields.pop_back();
    if (event == Json::parse_event_t::key && !fields.back().insert(parsed.get<std::string>()).second &&
        problem.empty()) {
      problem = absl::StrCat("it has the field ", Quoted(parsed.get<std::string>()), " twice in one object");
    }
    return depth <= kMaxDepth;
  };
  try {
    Json parsed = Json::parse(text.begin(), text.end(), check);
    if (!problem.empty()) return absl::InvalidArgumentError(problem);
    return parsed;
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("it is not JSON: ", Escaped(error.what())));
  }
}

}  // namespace

absl::StatusOr<AuthFile> AuthFile::Parse(absl::string_view text) {
  ASSIGN_OR_RETURN(const Json root, ParseJson(text));
  RETURN_IF_ERROR(Reader(root, "the file").CheckFields({"clients"}));
  const auto list = root.find("clients");
  if (list == root.end() || !list->is_array()) return absl::InvalidArgumentError("clients must be a list of objects");
  AuthFile file;
  for (const Json& object : *list) {
    ASSIGN_OR_RETURN(AuthClient client, ReadClient(object, file.clients_.size()));
    file.clients_.push_back(std::move(client));
  }
  RETURN_IF_ERROR(CheckDistinct(file.clients_));
  return file;
}

absl::StatusOr<AuthFile> AuthFile::Read(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad() || (stream.gcount() == 0 && !stream.eof())) {
    return absl::InvalidArgumentError(absl::StrCat("--auth-file: ", path, " cannot be read"));
  }
  if (stream.gcount() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--auth-file: ", path, " is larger than ", kMaxFileBytes, " bytes"));
  }
  text.resize(static_cast<size_t>(stream.gcount()));
  absl::StatusOr<AuthFile> file = Parse(text);
  if (!file.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--auth-file: ", path, ": ", file.status().message()));
  }
  return file;
}

const AuthClient* AuthFile::FindByToken(absl::string_view token) const {
  const Sha256 digest = Sha256Of(token);
  const AuthClient* found = nullptr;
  // Compares with all of them, so that the time taken does not reveal which digest is close.
  for (const AuthClient& client : clients_) {
    if (client.token.has_value() && SameDigest(*client.token, digest)) {
      found = &client;
    }
  }
  return found;
}

const AuthClient* AuthFile::FindBySan(absl::string_view san) const {
  for (const AuthClient& client : clients_) {
    if (!client.san.empty() && client.san == san) return &client;
  }
  return nullptr;
}

const AuthClient* AuthFile::FindByUid(int64_t uid) const {
  for (const AuthClient& client : clients_) {
    if (client.uid == uid) return &client;
  }
  return nullptr;
}

}  // namespace hookline
