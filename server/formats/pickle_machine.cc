#include "server/formats/pickle_machine.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/escape.h"
#include "server/base/little_endian.h"
#include "server/base/status.h"

namespace hookline {
namespace {

// About twelve objects describe a tensor. This bounds the stack and the memo, too.
constexpr size_t kMaxObjects = 1'500'000;
constexpr size_t kMaxDimensions = 8;

constexpr absl::string_view kOrderedDict = "collections OrderedDict";
constexpr absl::string_view kRebuildTensor = "torch._utils _rebuild_tensor_v2";
constexpr absl::string_view kRebuildParameter = "torch._utils _rebuild_parameter";
constexpr absl::string_view kEncoding = "tiktoken.core Encoding";

bool IsStorageType(absl::string_view global) {
  for (absl::string_view type :
       {"torch FloatStorage", "torch BFloat16Storage", "torch HalfStorage", "torch DoubleStorage", "torch LongStorage",
        "torch IntStorage", "torch ShortStorage", "torch CharStorage", "torch ByteStorage", "torch BoolStorage"}) {
    if (global == type) return true;
  }
  return false;
}

}  // namespace

const char* KindName(PickleObject::Kind kind) {
  using Kind = PickleObject::Kind;
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

absl::Status BadPickle(absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat("its pickle ", what));
}

absl::StatusOr<PickleObject*> PickleMachine::Result() {
  while (true) {
    if (in_.empty()) return BadPickle("ends without STOP");
    const uint8_t opcode = in_[0];
    in_.remove_prefix(1);
    if (opcode == '.') break;
    RETURN_IF_ERROR(Execute(opcode));
  }
  return Pop();
}

absl::Status PickleMachine::Execute(uint8_t opcode) {
  switch (opcode) {
    case 0x80: {  // PROTO
      ASSIGN_OR_RETURN(const uint64_t version, Number(1));
      if (version < 2 || version > 5) return BadPickle(absl::StrCat("has protocol ", version, "; 2 to 5 are known"));
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
      ASSIGN_OR_RETURN(std::vector<PickleObject*> items, PopToMark());
      ASSIGN_OR_RETURN(PickleObject * tuple, Push(Kind::kTuple));
      tuple->items = std::move(items);
      return absl::OkStatus();
    }
    case ']':  // EMPTY_LIST
      return Push(Kind::kList).status();
    case 'a': {  // APPEND
      ASSIGN_OR_RETURN(PickleObject * item, Pop());
      return Extend(Kind::kList, {item});
    }
    case 'e': {  // APPENDS
      ASSIGN_OR_RETURN(std::vector<PickleObject*> items, PopToMark());
      return Extend(Kind::kList, items);
    }
    case '}':  // EMPTY_DICT
      return Push(Kind::kDict).status();
    case 's': {  // SETITEM
      ASSIGN_OR_RETURN(PickleObject * value, Pop());
      ASSIGN_OR_RETURN(PickleObject * key, Pop());
      return Extend(Kind::kDict, {key, value});
    }
    case 'u': {  // SETITEMS
      ASSIGN_OR_RETURN(std::vector<PickleObject*> items, PopToMark());
      if (items.size() % 2 != 0) return BadPickle("sets a dict's key without a value");
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
      ASSIGN_OR_RETURN(PickleObject * name, Pop());
      ASSIGN_OR_RETURN(PickleObject * module, Pop());
      if (name->kind != Kind::kString || module->kind != Kind::kString) {
        return BadPickle("names a global by something other than a string");
      }
      return PushGlobal(module->text, name->text);
    }
    case 'Q':  // BINPERSID
      return PushStorage();
    case 'R':  // REDUCE
      return Reduce();
    case 'b': {  // BUILD: sets attributes, such as the state dict's _metadata, which say nothing about the weights
      ASSIGN_OR_RETURN(PickleObject * attributes, Pop());
      if (!stack_.empty() && stack_.back()->kind == Kind::kEncoding && attributes->kind == Kind::kDict) {
        stack_.back()->items = attributes->items;
        return absl::OkStatus();
      }
      if (stack_.empty() || stack_.back()->kind != Kind::kDict)
        return BadPickle("sets attributes of something other than a dict");
      return absl::OkStatus();
    }
    default:
      return BadPickle(absl::StrCat("has opcode 0x", absl::Hex(opcode, absl::kZeroPad2), " at byte ",
                                    position_of_next() - 1, ", which a state dict does not need"));
  }
}

absl::StatusOr<PickleObject*> PickleMachine::New(Kind kind) {
  if (objects_.size() == kMaxObjects) return BadPickle(absl::StrCat("holds more than ", kMaxObjects, " objects"));
  objects_.push_back(std::make_unique<PickleObject>());
  objects_.back()->kind = kind;
  return objects_.back().get();
}

absl::Status PickleMachine::PushObject(PickleObject* object) {
  if (stack_.size() == kMaxObjects) return BadPickle(absl::StrCat("stacks more than ", kMaxObjects, " objects"));
  stack_.push_back(object);
  return absl::OkStatus();
}

absl::StatusOr<PickleObject*> PickleMachine::Push(Kind kind) {
  ASSIGN_OR_RETURN(PickleObject * object, New(kind));
  RETURN_IF_ERROR(PushObject(object));
  return object;
}

absl::Status PickleMachine::PushInt(int64_t value, Kind kind) {
  ASSIGN_OR_RETURN(PickleObject * object, Push(kind));
  object->number = value;
  return absl::OkStatus();
}

absl::StatusOr<PickleObject*> PickleMachine::Pop() {
  if (stack_.empty()) return BadPickle("takes from an empty stack");
  PickleObject* object = stack_.back();
  stack_.pop_back();
  return object;
}

absl::StatusOr<std::vector<PickleObject*>> PickleMachine::PopToMark() {
  for (size_t i = stack_.size(); i-- > 0;) {
    if (stack_[i]->kind != Kind::kMark) continue;
    std::vector<PickleObject*> items(stack_.begin() + static_cast<std::ptrdiff_t>(i) + 1, stack_.end());
    stack_.resize(i);
    return items;
  }
  return BadPickle("pops back to a mark that is not there");
}

absl::StatusOr<uint64_t> PickleMachine::Number(size_t bytes) {
  if (in_.size() < bytes) return BadPickle("is cut short");
  const uint64_t value = ReadLittleEndian(in_.first(bytes));
  in_.remove_prefix(bytes);
  return value;
}

absl::Status PickleMachine::PushNumber(size_t bytes) {
  ASSIGN_OR_RETURN(const uint64_t value, Number(bytes));
  return PushInt(static_cast<int64_t>(value), Kind::kInt);
}

absl::Status PickleMachine::PushLong() {
  ASSIGN_OR_RETURN(const uint64_t bytes, Number(1));
  if (bytes > 8) return BadPickle("has an integer of more than 64 bits");
  ASSIGN_OR_RETURN(uint64_t value, Number(bytes));
  const bool negative = bytes > 0 && ((value >> (8 * bytes - 1)) & 1) != 0;
  if (negative && bytes < 8) value |= ~uint64_t{0} << (8 * bytes);
  return PushInt(static_cast<int64_t>(value), Kind::kInt);
}

absl::Status PickleMachine::PushString(size_t length_bytes, Kind kind) {
  ASSIGN_OR_RETURN(const uint64_t length, Number(length_bytes));
  if (in_.size() < length) return BadPickle("is cut short inside a string");
  ASSIGN_OR_RETURN(PickleObject * object, Push(kind));
  object->text.assign(reinterpret_cast<const char*>(in_.data()), length);
  in_.remove_prefix(length);
  return absl::OkStatus();
}

absl::Status PickleMachine::PushTuple(size_t count) {
  if (stack_.size() < count) return BadPickle("takes from an empty stack");
  std::vector<PickleObject*> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
  stack_.resize(stack_.size() - count);
  ASSIGN_OR_RETURN(PickleObject * tuple, Push(Kind::kTuple));
  tuple->items = std::move(items);
  return absl::OkStatus();
}

absl::Status PickleMachine::Extend(Kind kind, const std::vector<PickleObject*>& items) {
  if (stack_.empty() || stack_.back()->kind != kind)
    return BadPickle(absl::StrCat("adds to something that is not ", KindName(kind)));
  stack_.back()->items.insert(stack_.back()->items.end(), items.begin(), items.end());
  return absl::OkStatus();
}

absl::Status PickleMachine::Put(size_t bytes) {
  ASSIGN_OR_RETURN(const uint64_t index, Number(bytes));
  return Memoize(index);
}

absl::Status PickleMachine::Memoize(uint64_t index) {
  if (stack_.empty()) return BadPickle("remembers the top of an empty stack");
  if (memo_.size() == kMaxObjects) return BadPickle(absl::StrCat("remembers more than ", kMaxObjects, " objects"));
  memo_[index] = stack_.back();
  return absl::OkStatus();
}

absl::Status PickleMachine::Get(size_t bytes) {
  ASSIGN_OR_RETURN(const uint64_t index, Number(bytes));
  const auto it = memo_.find(index);
  if (it == memo_.end()) return BadPickle(absl::StrCat("recalls object ", index, ", which it never remembered"));
  return PushObject(it->second);
}

absl::StatusOr<std::string> PickleMachine::Line() {
  for (size_t i = 0; i < in_.size(); ++i) {
    if (in_[i] != '\n') continue;
    std::string line(reinterpret_cast<const char*>(in_.data()), i);
    in_.remove_prefix(i + 1);
    return line;
  }
  return BadPickle("is cut short inside a name");
}

absl::Status PickleMachine::PushGlobal(const std::string& module, const std::string& name) {
  std::string global = absl::StrCat(module, " ", name);
  if (global != kOrderedDict && global != kRebuildTensor && global != kRebuildParameter && global != kEncoding &&
      !IsStorageType(global)) {
    return BadPickle(
        absl::StrCat("refers to ", Quoted(absl::StrCat(module, ".", name)),
                     ", which a state dict does not need; only tensors, OrderedDicts and primitive values are "
                     "read, and nothing is executed"));
  }
  ASSIGN_OR_RETURN(PickleObject * object, Push(Kind::kGlobal));
  object->text = std::move(global);
  return absl::OkStatus();
}

absl::Status PickleMachine::NewEncoding() {
  ASSIGN_OR_RETURN(PickleObject * arguments, Pop());
  ASSIGN_OR_RETURN(PickleObject * type, Pop());
  if (arguments->kind != Kind::kTuple || !arguments->items.empty() || type->kind != Kind::kGlobal ||
      type->text != kEncoding) {
    return BadPickle("makes an object of a class other than tiktoken.Encoding");
  }
  return Push(Kind::kEncoding).status();
}

absl::Status PickleMachine::PushStorage() {
  ASSIGN_OR_RETURN(PickleObject * id, Pop());
  const std::vector<PickleObject*>& parts = id->items;
  // The older form ends with a description of the storage as a view of another, which has long been None.
  const bool is_whole = parts.size() == 5 || (parts.size() == 6 && parts[5]->kind == Kind::kNone);
  if (id->kind != Kind::kTuple || !is_whole || parts[0]->kind != Kind::kString || parts[0]->text != "storage" ||
      parts[1]->kind != Kind::kGlobal || !IsStorageType(parts[1]->text) || parts[2]->kind != Kind::kString ||
      parts[3]->kind != Kind::kString || parts[4]->kind != Kind::kInt || parts[4]->number < 0 ||
      parts[2]->text.size() > kMaxStorageKeyBytes) {
    return BadPickle("describes a storage in a way that torch.save does not");
  }
  ASSIGN_OR_RETURN(PickleObject * storage, Push(Kind::kStorage));
  storage->tensor = std::make_unique<PickledTensor>();
  storage->tensor->storage_type = parts[1]->text.substr(parts[1]->text.find(' ') + 1);
  storage->tensor->storage_key = parts[2]->text;
  storage->tensor->storage_values = parts[4]->number;
  return absl::OkStatus();
}

absl::Status PickleMachine::Reduce() {
  ASSIGN_OR_RETURN(PickleObject * arguments, Pop());
  ASSIGN_OR_RETURN(PickleObject * function, Pop());
  if (function->kind != Kind::kGlobal) return BadPickle(absl::StrCat("calls ", KindName(function->kind)));
  if (arguments->kind != Kind::kTuple) return BadPickle("calls a function without a tuple of arguments");
  if (function->text == kOrderedDict) {
    if (!arguments->items.empty()) return BadPickle("makes an OrderedDict with arguments");
    return Push(Kind::kDict).status();
  }
  if (function->text == kRebuildTensor) return RebuildTensor(arguments->items);
  if (function->text == kRebuildParameter) {
    if (arguments->items.empty() || arguments->items[0]->kind != Kind::kTensor) {
      return BadPickle("makes a parameter from something other than a tensor");
    }
    return PushObject(arguments->items[0]);
  }
  return BadPickle(absl::StrCat("calls ", Quoted(function->text)));
}

absl::Status PickleMachine::RebuildTensor(const std::vector<PickleObject*>& arguments) {
  if (arguments.size() < 4 || arguments.size() > 7 || arguments[0]->kind != Kind::kStorage ||
      arguments[1]->kind != Kind::kInt) {
    return BadPickle("describes a tensor in a way that torch.save does not");
  }
  // torch.save writes the conjugate and the negative bit there; where one is set, the values are not those stored.
  if (arguments.size() == 7 &&
      !(arguments[6]->kind == Kind::kNone || (arguments[6]->kind == Kind::kDict && arguments[6]->items.empty()))) {
    return BadPickle(
        "has a tensor with flags that change its values (conj, neg); save tensor.resolve_conj().resolve_neg()");
  }
  PickledTensor tensor = *arguments[0]->tensor;
  tensor.offset = arguments[1]->number;
  for (const auto& [object, numbers] :
       {std::pair(arguments[2], &tensor.sizes), std::pair(arguments[3], &tensor.strides)}) {
    if (object->kind != Kind::kTuple || object->items.size() > kMaxDimensions) {
      return BadPickle(
          absl::StrCat("describes a tensor without sizes and strides of at most ", kMaxDimensions, " axes"));
    }
    for (const PickleObject* number : object->items) {
      if (number->kind != Kind::kInt)
        return BadPickle(absl::StrCat("has ", KindName(number->kind), " as a tensor's size"));
      numbers->push_back(number->number);
    }
  }
  ASSIGN_OR_RETURN(PickleObject * object, Push(Kind::kTensor));
  object->tensor = std::make_unique<PickledTensor>(std::move(tensor));
  return absl::OkStatus();
}

}  // namespace hookline
