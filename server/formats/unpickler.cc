#include "server/formats/unpickler.h"

#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/formats/pickle_machine.h"

namespace hookline {
namespace {

using Kind = PickleObject::Kind;

// The pickle of 0x1950a86a20f9469cfc6c, with which a legacy file begins.
constexpr absl::string_view kLegacyMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
constexpr int64_t kLegacyVersion = 1001;

// Returns the tensors of the state dict that the machine's pickle holds.
absl::StatusOr<std::vector<PickledTensor>> TensorsOf(PickleMachine& machine) {
  ASSIGN_OR_RETURN(PickleObject * result, machine.Result());
  if (result->kind != Kind::kDict)
    return BadPickle(absl::StrCat("holds ", KindName(result->kind), ", not a state dict"));
  std::vector<PickledTensor> tensors;
  absl::flat_hash_set<absl::string_view> names;
  for (size_t i = 0; i < result->items.size(); i += 2) {
    const PickleObject& key = *result->items[i];
    const PickleObject& value = *result->items[i + 1];
    if (key.kind != Kind::kString)
      return BadPickle(absl::StrCat("has ", KindName(key.kind), " as a key of its state dict"));
    if (value.kind == Kind::kDict) {
      return BadPickle(absl::StrCat("has a dict under ", Quoted(key.text),
                                    " instead of a tensor: if that is the state dict, save it alone"));
    }
    if (value.kind != Kind::kTensor) {
      return BadPickle(absl::StrCat("has ", KindName(value.kind), " under ", Quoted(key.text), " instead of a tensor"));
    }
    if (!names.insert(key.text).second) return BadPickle(absl::StrCat("names two tensors ", Quoted(key.text)));
    tensors.push_back(*value.tensor);
    tensors.back().name = key.text;
  }
  return tensors;
}

// Returns the tokens of `dict`, which is the attribute `name` of an Encoding and maps keys of kind `key_kind` to ids.
absl::StatusOr<std::vector<std::pair<std::string, uint32_t>>> TokensOf(const PickleObject& dict, Kind key_kind,
                                                                       absl::string_view name) {
  if (dict.kind != Kind::kDict)
    return BadPickle(absl::StrCat("has ", KindName(dict.kind), " as the Encoding's ", name));
  std::vector<std::pair<std::string, uint32_t>> tokens;
  tokens.reserve(dict.items.size() / 2);
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const PickleObject& key = *dict.items[i];
    const PickleObject& id = *dict.items[i + 1];
    if (key.kind != key_kind || key.text.empty() || id.kind != Kind::kInt || id.number < 0 ||
        id.number > std::numeric_limits<uint32_t>::max()) {
      return BadPickle(absl::StrCat("has something other than tokens and their ids in the Encoding's ", name));
    }
    tokens.emplace_back(key.text, static_cast<uint32_t>(id.number));
  }
  return tokens;
}

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> UnpickleStateDict(absl::Span<const uint8_t> pickle) {
  if (pickle.size() > kMaxPickleBytes) {
    return BadPickle(absl::StrCat("has ", pickle.size(), " bytes; at most ", kMaxPickleBytes, " are read"));
  }
  PickleMachine machine(pickle);
  return TensorsOf(machine);
}

absl::StatusOr<PickledEncoding> UnpickleEncoding(absl::Span<const uint8_t> pickle) {
  if (pickle.size() > kMaxPickleBytes) {
    return BadPickle(absl::StrCat("has ", pickle.size(), " bytes; at most ", kMaxPickleBytes, " are read"));
  }
  PickleMachine machine(pickle);
  ASSIGN_OR_RETURN(const PickleObject* object, machine.Result());
  if (object->kind != Kind::kEncoding) {
    return BadPickle(absl::StrCat("holds ", KindName(object->kind), ", not a tiktoken.Encoding"));
  }
  absl::flat_hash_map<absl::string_view, const PickleObject*> attributes;
  for (size_t i = 0; i < object->items.size(); i += 2) {
    if (object->items[i]->kind == Kind::kString) attributes[object->items[i]->text] = object->items[i + 1];
  }
  for (const char* name : {"name", "pat_str", "mergeable_ranks", "special_tokens"}) {
    if (!attributes.contains(name)) return BadPickle(absl::StrCat("has an Encoding without ", name));
  }
  if (attributes["name"]->kind != Kind::kString || attributes["pat_str"]->kind != Kind::kString) {
    return BadPickle("has an Encoding whose name or pattern is not a string");
  }
  PickledEncoding encoding;
  encoding.name = attributes["name"]->text;
  encoding.pattern = attributes["pat_str"]->text;
  ASSIGN_OR_RETURN(encoding.ranks, TokensOf(*attributes["mergeable_ranks"], Kind::kBytes, "mergeable_ranks"));
  ASSIGN_OR_RETURN(encoding.special_tokens, TokensOf(*attributes["special_tokens"], Kind::kString, "special_tokens"));
  return encoding;
}

bool IsLegacyFile(absl::Span<const uint8_t> file) {
  return file.size() >= kLegacyMagic.size() &&
         absl::string_view(reinterpret_cast<const char*>(file.data()), kLegacyMagic.size()) == kLegacyMagic;
}

absl::StatusOr<LegacyHead> UnpickleLegacyHead(absl::Span<const uint8_t> file) {
  if (!IsLegacyFile(file)) return BadPickle("does not begin with the number that torch.save wrote");
  absl::Span<const uint8_t> rest = file.subspan(kLegacyMagic.size());
  PickleMachine version(rest);
  ASSIGN_OR_RETURN(const PickleObject* number, version.Result());
  if (number->kind != Kind::kInt || number->number != kLegacyVersion) {
    return BadPickle(absl::StrCat("has a version other than ", kLegacyVersion));
  }
  PickleMachine system(version.rest());
  ASSIGN_OR_RETURN(const PickleObject* facts, system.Result());
  bool is_little_endian = false;
  for (size_t i = 0; facts->kind == Kind::kDict && i + 1 < facts->items.size(); i += 2) {
    const PickleObject& key = *facts->items[i];
    const PickleObject& value = *facts->items[i + 1];
    if (key.kind == Kind::kString && key.text == "little_endian") {
      is_little_endian = value.kind == Kind::kBool && value.number == 1;
    }
  }
  if (!is_little_endian) return BadPickle("does not say that it was written on a little-endian machine");
  LegacyHead head;
  PickleMachine state(system.rest());
  ASSIGN_OR_RETURN(head.tensors, TensorsOf(state));
  PickleMachine order(state.rest());
  ASSIGN_OR_RETURN(const PickleObject* keys, order.Result());
  if (keys->kind != Kind::kList) return BadPickle("gives no list of its storages");
  for (const PickleObject* key : keys->items) {
    if (key->kind != Kind::kString || key->text.size() > kMaxStorageKeyBytes) {
      return BadPickle("names a storage in a way that torch.save does not");
    }
    head.storage_keys.push_back(key->text);
  }
  head.bytes = file.size() - order.rest().size();
  return head;
}

}  // namespace hookline
