#include "server/formats/unpickler.h"

#include <limits>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/base/escape.h"
#include "server/base/little_endian.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// About twelve objects describe a tensor. Bounds the stack and the memo too, which a few bytes of pickle could fill.
constexpr size_t kMaxObjects = 1'500'000;
// torch.save numbers its storages. Every tensor keeps a copy of the key of its storage.
constexpr size_t kMaxStorageKeyBytes = 64;
constexpr size_t kMaxDimensions = 8;

// An object of the pickle. All are owned by the unpickler and die with it, so references between them, circles
// included, need no care.
struct Object {
  enum class Kind {
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kBytes,
    kTuple,
    kList,
    kDict,
    kGlobal,
    kStorage,
    kTensor,
    kEncoding,
    kMark,
  };
  Kind kind = Kind::kNone;
  int64_t number = 0;                     // kBool, kInt
  std::string text;                       // kString, kBytes; kGlobal: "module name"
  std::vector<Object*> items;             // kTuple, kList; kDict, kEncoding's attributes: key, value, key, value...
  std::unique_ptr<PickledTensor> tensor;  // kTensor; kStorage: its storage fields
};
using Kind = Object::Kind;

const char* Name(Kind kind) {
  switch (kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "a bool";
    case Kind::kInt:
      return "an integer";
    case Kind::kFloat:
      return "a float";
    case Kind::kString:
      return "a string";
    case Kind::kBytes:
      return "bytes";
    case Kind::kTuple:
      return "a tuple";
    case Kind::kList:
      return "a list";
    case Kind::kDict:
      return "a dict";
    case Kind::kGlobal:
      return "a type or function";
    case Kind::kStorage:
      return "a storage";
    case Kind::kTensor:
      return "a tensor";
    case Kind::kEncoding:
      return "a tiktoken.Encoding";
    case Kind::kMark:
      return "a mark";
  }
  return "";
}

constexpr absl::string_view kOrderedDict = "collections OrderedDict";
constexpr absl::string_view kRebuildTensor = "torch._utils _rebuild_tensor_v2";
constexpr absl::string_view kRebuildParameter = "torch._utils _rebuild_parameter";
constexpr absl::string_view kEncoding = "tiktoken.core Encoding";

// The pickle of 0x1950a86a20f9469cfc6c.
constexpr absl::string_view kLegacyMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
constexpr int64_t kLegacyVersion = 1001;

bool IsStorageType(absl::string_view global) {
  for (absl::string_view type :
       {"torch FloatStorage", "torch BFloat16Storage", "torch HalfStorage", "torch DoubleStorage", "torch LongStorage",
        "torch IntStorage", "torch ShortStorage", "torch CharStorage", "torch ByteStorage", "torch BoolStorage"}) {
    if (global == type) return true;
  }
  return false;
}

absl::Status Bad(absl::string_view what) { return absl::FailedPreconditionError(absl::StrCat("its pickle ", what)); }

class Unpickler {
 public:
  explicit Unpickler(absl::Span<const uint8_t> pickle) : in_(pickle) {}

  // Returns the object that the pickle holds.
  absl::StatusOr<Object*> Result() {
    while (true) {
      if (in_.empty()) return Bad("ends without STOP");
      const uint8_t opcode = in_[0];
      in_.remove_prefix(1);
      if (opcode == '.') break;
      RETURN_IF_ERROR(Execute(opcode));
    }
    return Pop();
  }

  // Returns the bytes after the pickle, once there is a result.
  absl::Span<const uint8_t> rest() const { return in_; }

  absl::StatusOr<std::vector<PickledTensor>> Tensors() {
    ASSIGN_OR_RETURN(Object * result, Result());
    if (result->kind != Kind::kDict) return Bad(absl::StrCat("holds ", Name(result->kind), ", not a state dict"));
    std::vector<PickledTensor> tensors;
    absl::flat_hash_set<absl::string_view> names;
    for (size_t i = 0; i < result->items.size(); i += 2) {
      const Object& key = *result->items[i];
      const Object& value = *result->items[i + 1];
      if (key.kind != Kind::kString) return Bad(absl::StrCat("has ", Name(key.kind), " as a key of its state dict"));
      if (value.kind == Kind::kDict) {
        return Bad(absl::StrCat("has a dict under ", Quoted(key.text),
                                " instead of a tensor: if that is the state dict, save it alone"));
      }
      if (value.kind != Kind::kTensor) {
        return Bad(absl::StrCat("has ", Name(value.kind), " under ", Quoted(key.text), " instead of a tensor"));
      }
      if (!names.insert(key.text).second) return Bad(absl::StrCat("names two tensors ", Quoted(key.text)));
      tensors.push_back(*value.tensor);
      tensors.back().name = key.text;
    }
    return tensors;
  }

 private:
  absl::Status Execute(uint8_t opcode) {
    switch (opcode) {
      case 0x80: {  // PROTO
        ASSIGN_OR_RETURN(const uint64_t version, Number(1));
        if (version < 2 || version > 5) return Bad(absl::StrCat("has protocol ", version, "; 2 to 5 are known"));
        return absl::OkStatus();
      }
      case 0x95:  // FRAME
        return Number(8).status();
      case '(':  // MARK
        return Push(Kind::kMark).status();
      case '0':  // POP
        return Pop().status();
      case 'N':  // NONE
        return Push(Kind::kNone).status();
      case 0x88:  // NEWTRUE
        return PushInt(1, Kind::kBool);
      case 0x89:  // NEWFALSE
        return PushInt(0, Kind::kBool);
      case 'K':  // BININT1
        return PushNumber(1);
      case 'M':  // BININT2
        return PushNumber(2);
      case 'J': {  // BININT
        ASSIGN_OR_RETURN(const uint64_t value, Number(4));
        return PushInt(static_cast<int32_t>(static_cast<uint32_t>(value)), Kind::kInt);
      }
      case 0x8a:  // LONG1
        return PushLong();
      case 'G':  // BINFLOAT
        RETURN_IF_ERROR(Number(8).status());
        return Push(Kind::kFloat).status();
      case 'X':  // BINUNICODE
        return PushString(4, Kind::kString);
      case 0x8c:  // SHORT_BINUNICODE
        return PushString(1, Kind::kString);
      case 0x8d:  // BINUNICODE8
        return PushString(8, Kind::kString);
      case 'B':  // BINBYTES
        return PushString(4, Kind::kBytes);
      case 'C':  // SHORT_BINBYTES
        return PushString(1, Kind::kBytes);
      case 0x81:  // NEWOBJ
        return NewEncoding();
      case ')':  // EMPTY_TUPLE
        return Push(Kind::kTuple).status();
      case 0x85:  // TUPLE1
        return PushTuple(1);
      case 0x86:  // TUPLE2
        return PushTuple(2);
      case 0x87:  // TUPLE3
        return PushTuple(3);
      case 't': {  // TUPLE
        ASSIGN_OR_RETURN(std::vector<Object*> items, PopToMark());
        ASSIGN_OR_RETURN(Object * tuple, Push(Kind::kTuple));
        tuple->items = std::move(items);
        return absl::OkStatus();
      }
      case ']':  // EMPTY_LIST
        return Push(Kind::kList).status();
      case 'a': {  // APPEND
        ASSIGN_OR_RETURN(Object * item, Pop());
        return Extend(Kind::kList, {item});
      }
      case 'e': {  // APPENDS
        ASSIGN_OR_RETURN(std::vector<Object*> items, PopToMark());
        return Extend(Kind::kList, items);
      }
      case '}':  // EMPTY_DICT
        return Push(Kind::kDict).status();
      case 's': {  // SETITEM
        ASSIGN_OR_RETURN(Object * value, Pop());
        ASSIGN_OR_RETURN(Object * key, Pop());
        return Extend(Kind::kDict, {key, value});
      }
      case 'u': {  // SETITEMS
        ASSIGN_OR_RETURN(std::vector<Object*> items, PopToMark());
        if (items.size() % 2 != 0) return Bad("sets a dict's key without a value");
        return Extend(Kind::kDict, items);
      }
      case 'q':  // BINPUT
        return Put(1);
      case 'r':  // LONG_BINPUT
        return Put(4);
      case 0x94:  // MEMOIZE
        return Memoize(memo_.size());
      case 'h':  // BINGET
        return Get(1);
      case 'j':  // LONG_BINGET
        return Get(4);
      case 'c': {  // GLOBAL
        ASSIGN_OR_RETURN(const std::string module, Line());
        ASSIGN_OR_RETURN(const std::string name, Line());
        return PushGlobal(module, name);
      }
      case 0x93: {  // STACK_GLOBAL
        ASSIGN_OR_RETURN(Object * name, Pop());
        ASSIGN_OR_RETURN(Object * module, Pop());
        if (name->kind != Kind::kString || module->kind != Kind::kString) return Bad("names a global by no string");
        return PushGlobal(module->text, name->text);
      }
      case 'Q':  // BINPERSID
        return PushStorage();
      case 'R':  // REDUCE
        return Reduce();
      case 'b': {  // BUILD: attributes, such as the state dict's _metadata, which say nothing of the weights
        ASSIGN_OR_RETURN(Object * attributes, Pop());
        if (!stack_.empty() && stack_.back()->kind == Kind::kEncoding && attributes->kind == Kind::kDict) {
          stack_.back()->items = attributes->items;
          return absl::OkStatus();
        }
        if (stack_.empty() || stack_.back()->kind != Kind::kDict)
          return Bad("sets attributes of something else than a dict");
        return absl::OkStatus();
      }
      default:
        return Bad(absl::StrCat("has opcode 0x", absl::Hex(opcode, absl::kZeroPad2), " at byte ",
                                position_of_next() - 1, ", which a state dict does not need"));
    }
  }

  size_t position_of_next() const { return static_cast<size_t>(in_.data() - begin_); }

  absl::StatusOr<Object*> New(Kind kind) {
    if (objects_.size() == kMaxObjects) return Bad(absl::StrCat("holds more than ", kMaxObjects, " objects"));
    objects_.push_back(std::make_unique<Object>());
    objects_.back()->kind = kind;
    return objects_.back().get();
  }

  absl::Status PushObject(Object* object) {
    if (stack_.size() == kMaxObjects) return Bad(absl::StrCat("stacks more than ", kMaxObjects, " objects"));
    stack_.push_back(object);
    return absl::OkStatus();
  }

  absl::StatusOr<Object*> Push(Kind kind) {
    ASSIGN_OR_RETURN(Object * object, New(kind));
    RETURN_IF_ERROR(PushObject(object));
    return object;
  }

  absl::Status PushInt(int64_t value, Kind kind) {
    ASSIGN_OR_RETURN(Object * object, Push(kind));
    object->number = value;
    return absl::OkStatus();
  }

  absl::StatusOr<Object*> Pop() {
    if (stack_.empty()) return Bad("takes from an empty stack");
    Object* object = stack_.back();
    stack_.pop_back();
    return object;
  }

  absl::StatusOr<std::vector<Object*>> PopToMark() {
    for (size_t i = stack_.size(); i-- > 0;) {
      if (stack_[i]->kind != Kind::kMark) continue;
      std::vector<Object*> items(stack_.begin() + static_cast<std::ptrdiff_t>(i) + 1, stack_.end());
      stack_.resize(i);
      return items;
    }
    return Bad("takes back to a mark that is not there");
  }

  absl::StatusOr<uint64_t> Number(size_t bytes) {
    if (in_.size() < bytes) return Bad("is cut short");
    const uint64_t value = ReadLittleEndian(in_.first(bytes));
    in_.remove_prefix(bytes);
    return value;
  }

  absl::Status PushNumber(size_t bytes) {
    ASSIGN_OR_RETURN(const uint64_t value, Number(bytes));
    return PushInt(static_cast<int64_t>(value), Kind::kInt);
  }

  // Little-endian two's complement of a length of its own.
  absl::Status PushLong() {
    ASSIGN_OR_RETURN(const uint64_t bytes, Number(1));
    if (bytes > 8) return Bad("has an integer of more than 64 bits");
    ASSIGN_OR_RETURN(uint64_t value, Number(bytes));
    const bool negative = bytes > 0 && ((value >> (8 * bytes - 1)) & 1) != 0;
    if (negative && bytes < 8) value |= ~uint64_t{0} << (8 * bytes);
    return PushInt(static_cast<int64_t>(value), Kind::kInt);
  }

  absl::Status PushString(size_t length_bytes, Kind kind) {
    ASSIGN_OR_RETURN(const uint64_t length, Number(length_bytes));
    if (in_.size() < length) return Bad("is cut short inside a string");
    ASSIGN_OR_RETURN(Object * object, Push(kind));
    object->text.assign(reinterpret_cast<const char*>(in_.data()), length);
    in_.remove_prefix(length);
    return absl::OkStatus();
  }

  absl::Status PushTuple(size_t count) {
    if (stack_.size() < count) return Bad("takes from an empty stack");
    std::vector<Object*> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    ASSIGN_OR_RETURN(Object * tuple, Push(Kind::kTuple));
    tuple->items = std::move(items);
    return absl::OkStatus();
  }

  absl::Status Extend(Kind kind, const std::vector<Object*>& items) {
    if (stack_.empty() || stack_.back()->kind != kind) return Bad(absl::StrCat("adds to what is not ", Name(kind)));
    stack_.back()->items.insert(stack_.back()->items.end(), items.begin(), items.end());
    return absl::OkStatus();
  }

  absl::Status Put(size_t bytes) {
    ASSIGN_OR_RETURN(const uint64_t index, Number(bytes));
    return Memoize(index);
  }

  absl::Status Memoize(uint64_t index) {
    if (stack_.empty()) return Bad("remembers the top of an empty stack");
    if (memo_.size() == kMaxObjects) return Bad(absl::StrCat("remembers more than ", kMaxObjects, " objects"));
    memo_[index] = stack_.back();
    return absl::OkStatus();
  }

  absl::Status Get(size_t bytes) {
    ASSIGN_OR_RETURN(const uint64_t index, Number(bytes));
    const auto it = memo_.find(index);
    if (it == memo_.end()) return Bad(absl::StrCat("recalls object ", index, ", which it never remembered"));
    return PushObject(it->second);
  }

  absl::StatusOr<std::string> Line() {
    for (size_t i = 0; i < in_.size(); ++i) {
      if (in_[i] != '\n') continue;
      std::string line(reinterpret_cast<const char*>(in_.data()), i);
      in_.remove_prefix(i + 1);
      return line;
    }
    return Bad("is cut short inside a name");
  }

  absl::Status PushGlobal(const std::string& module, const std::string& name) {
    std::string global = absl::StrCat(module, " ", name);
    if (global != kOrderedDict && global != kRebuildTensor && global != kRebuildParameter && global != kEncoding &&
        !IsStorageType(global)) {
      return Bad(absl::StrCat("refers to ", Quoted(absl::StrCat(module, ".", name)),
                              ", which a state dict does not need; only tensors, OrderedDicts and primitive values are "
                              "read, and nothing is executed"));
    }
    ASSIGN_OR_RETURN(Object * object, Push(Kind::kGlobal));
    object->text = std::move(global);
    return absl::OkStatus();
  }

  // An Encoding without its attributes, which BUILD sets; of no other class is an object made.
  absl::Status NewEncoding() {
    ASSIGN_OR_RETURN(Object * arguments, Pop());
    ASSIGN_OR_RETURN(Object * type, Pop());
    if (arguments->kind != Kind::kTuple || !arguments->items.empty() || type->kind != Kind::kGlobal ||
        type->text != kEncoding) {
      return Bad("makes an object of something else than tiktoken.Encoding");
    }
    return Push(Kind::kEncoding).status();
  }

  // ('storage', type, key, location, number of values). The location is where the tensor was, and of no interest.
  absl::Status PushStorage() {
    ASSIGN_OR_RETURN(Object * id, Pop());
    const std::vector<Object*>& parts = id->items;
    // The older form says last of what the storage is a view, which it has not been for long.
    const bool is_whole = parts.size() == 5 || (parts.size() == 6 && parts[5]->kind == Kind::kNone);
    if (id->kind != Kind::kTuple || !is_whole || parts[0]->kind != Kind::kString || parts[0]->text != "storage" ||
        parts[1]->kind != Kind::kGlobal || !IsStorageType(parts[1]->text) || parts[2]->kind != Kind::kString ||
        parts[3]->kind != Kind::kString || parts[4]->kind != Kind::kInt || parts[4]->number < 0 ||
        parts[2]->text.size() > kMaxStorageKeyBytes) {
      return Bad("describes a storage in a way that torch.save does not");
    }
    ASSIGN_OR_RETURN(Object * storage, Push(Kind::kStorage));
    storage->tensor = std::make_unique<PickledTensor>();
    storage->tensor->storage_type = parts[1]->text.substr(parts[1]->text.find(' ') + 1);
    storage->tensor->storage_key = parts[2]->text;
    storage->tensor->storage_values = parts[4]->number;
    return absl::OkStatus();
  }

  absl::Status Reduce() {
    ASSIGN_OR_RETURN(Object * arguments, Pop());
    ASSIGN_OR_RETURN(Object * function, Pop());
    if (function->kind != Kind::kGlobal) return Bad(absl::StrCat("calls ", Name(function->kind)));
    if (arguments->kind != Kind::kTuple) return Bad("calls a function without a tuple of arguments");
    if (function->text == kOrderedDict) {
      if (!arguments->items.empty()) return Bad("makes an OrderedDict with arguments");
      return Push(Kind::kDict).status();
    }
    if (function->text == kRebuildTensor) return RebuildTensor(arguments->items);
    if (function->text == kRebuildParameter) {
      if (arguments->items.empty() || arguments->items[0]->kind != Kind::kTensor) {
        return Bad("makes a parameter of something else than a tensor");
      }
      return PushObject(arguments->items[0]);
    }
    return Bad(absl::StrCat("calls ", Quoted(function->text)));
  }

  // storage, offset, sizes, strides, requires_grad, hooks and, since 2.0, metadata.
  absl::Status RebuildTensor(const std::vector<Object*>& arguments) {
    if (arguments.size() < 4 || arguments.size() > 7 || arguments[0]->kind != Kind::kStorage ||
        arguments[1]->kind != Kind::kInt) {
      return Bad("describes a tensor in a way that torch.save does not");
    }
    // torch.save writes the conjugate and the negative bit there, under which the values are not those stored.
    if (arguments.size() == 7 &&
        !(arguments[6]->kind == Kind::kNone || (arguments[6]->kind == Kind::kDict && arguments[6]->items.empty()))) {
      return Bad(
          "has a tensor with flags that change its values (conj, neg); save tensor.resolve_conj().resolve_neg()");
    }
    PickledTensor tensor = *arguments[0]->tensor;
    tensor.offset = arguments[1]->number;
    for (const auto& [object, numbers] :
         {std::pair(arguments[2], &tensor.sizes), std::pair(arguments[3], &tensor.strides)}) {
      if (object->kind != Kind::kTuple || object->items.size() > kMaxDimensions) {
        return Bad(absl::StrCat("describes a tensor without sizes and strides of at most ", kMaxDimensions, " axes"));
      }
      for (const Object* number : object->items) {
        if (number->kind != Kind::kInt) return Bad(absl::StrCat("has ", Name(number->kind), " as a tensor's size"));
        numbers->push_back(number->number);
      }
    }
    ASSIGN_OR_RETURN(Object * object, Push(Kind::kTensor));
    object->tensor = std::make_unique<PickledTensor>(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Span<const uint8_t> in_;
  const uint8_t* const begin_ = in_.data();
  std::vector<std::unique_ptr<Object>> objects_;
  std::vector<Object*> stack_;
  absl::flat_hash_map<uint64_t, Object*> memo_;
};

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> UnpickleStateDict(absl::Span<const uint8_t> pickle) {
  if (pickle.size() > kMaxPickleBytes) {
    return Bad(absl::StrCat("has ", pickle.size(), " bytes; at most ", kMaxPickleBytes, " are read"));
  }
  return Unpickler(pickle).Tensors();
}

namespace {

// The tokens of the dict (of keys of that kind to ids) that `encoding` has as its attribute `name`.
absl::StatusOr<std::vector<std::pair<std::string, uint32_t>>> TokensOf(const Object& dict, Kind key_kind,
                                                                       absl::string_view name) {
  if (dict.kind != Kind::kDict) return Bad(absl::StrCat("has ", Name(dict.kind), " as the Encoding's ", name));
  std::vector<std::pair<std::string, uint32_t>> tokens;
  tokens.reserve(dict.items.size() / 2);
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const Object& key = *dict.items[i];
    const Object& id = *dict.items[i + 1];
    if (key.kind != key_kind || key.text.empty() || id.kind != Kind::kInt || id.number < 0 ||
        id.number > std::numeric_limits<uint32_t>::max()) {
      return Bad(absl::StrCat("has something else than tokens and their ids in the Encoding's ", name));
    }
    tokens.emplace_back(key.text, static_cast<uint32_t>(id.number));
  }
  return tokens;
}

}  // namespace

absl::StatusOr<PickledEncoding> UnpickleEncoding(absl::Span<const uint8_t> pickle) {
  if (pickle.size() > kMaxPickleBytes) {
    return Bad(absl::StrCat("has ", pickle.size(), " bytes; at most ", kMaxPickleBytes, " are read"));
  }
  Unpickler unpickler(pickle);
  ASSIGN_OR_RETURN(const Object* object, unpickler.Result());
  if (object->kind != Kind::kEncoding) {
    return Bad(absl::StrCat("holds ", Name(object->kind), ", not a tiktoken.Encoding"));
  }
  absl::flat_hash_map<absl::string_view, const Object*> attributes;
  for (size_t i = 0; i < object->items.size(); i += 2) {
    if (object->items[i]->kind == Kind::kString) attributes[object->items[i]->text] = object->items[i + 1];
  }
  for (const char* name : {"name", "pat_str", "mergeable_ranks", "special_tokens"}) {
    if (!attributes.contains(name)) return Bad(absl::StrCat("has an Encoding without ", name));
  }
  if (attributes["name"]->kind != Kind::kString || attributes["pat_str"]->kind != Kind::kString) {
    return Bad("has an Encoding whose name or pattern is not a string");
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
  if (!IsLegacyFile(file)) return Bad("does not begin with the number that torch.save wrote");
  absl::Span<const uint8_t> rest = file.subspan(kLegacyMagic.size());
  Unpickler version(rest);
  ASSIGN_OR_RETURN(const Object* number, version.Result());
  if (number->kind != Kind::kInt || number->number != kLegacyVersion) {
    return Bad(absl::StrCat("has another version than ", kLegacyVersion));
  }
  Unpickler system(version.rest());
  ASSIGN_OR_RETURN(const Object* facts, system.Result());
  bool is_little_endian = false;
  for (size_t i = 0; facts->kind == Kind::kDict && i + 1 < facts->items.size(); i += 2) {
    const Object& key = *facts->items[i];
    const Object& value = *facts->items[i + 1];
    if (key.kind == Kind::kString && key.text == "little_endian") {
      is_little_endian = value.kind == Kind::kBool && value.number == 1;
    }
  }
  if (!is_little_endian) return Bad("does not say that it was written on a little-endian machine");
  LegacyHead head;
  Unpickler state(system.rest());
  ASSIGN_OR_RETURN(head.tensors, state.Tensors());
  Unpickler order(state.rest());
  ASSIGN_OR_RETURN(const Object* keys, order.Result());
  if (keys->kind != Kind::kList) return Bad("gives no list of its storages");
  for (const Object* key : keys->items) {
    if (key->kind != Kind::kString || key->text.size() > kMaxStorageKeyBytes) {
      return Bad("names a storage in a way that torch.save does not");
    }
    head.storage_keys.push_back(key->text);
  }
  head.bytes = file.size() - order.rest().size();
  return head;
}

}  // namespace hookline
