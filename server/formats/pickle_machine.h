// The part of Python's pickle machine that a state dict or a tiktoken.Encoding needs; unpickler.h reads those from the
// objects that the machine builds. It knows a few globals by name and executes nothing.
#ifndef HOOKLINE_SERVER_FORMATS_PICKLE_MACHINE_H_
#define HOOKLINE_SERVER_FORMATS_PICKLE_MACHINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/formats/pickled_tensor.h"

namespace hookline {

// torch.save numbers its storages. Every tensor keeps a copy of the key of its storage.
inline constexpr size_t kMaxStorageKeyBytes = 64;

// An object of the pickle. The machine owns all objects until it is destroyed, so that references between them, cycles
// included, need no care.
struct PickleObject {
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
  std::vector<PickleObject*> items;       // kTuple, kList; kDict, kEncoding's attributes: key, value, key, value...
  std::unique_ptr<PickledTensor> tensor;  // kTensor; kStorage: its storage fields
};

// Returns the name of a kind for messages, such as "a dict".
const char* KindName(PickleObject::Kind kind);

// Returns FAILED_PRECONDITION with the message "its pickle " followed by `what`.
absl::Status BadPickle(absl::string_view what);

class PickleMachine {
 public:
  // `pickle` must outlive the machine, and the machine the objects.
  explicit PickleMachine(absl::Span<const uint8_t> pickle) : in_(pickle) {}

  // Returns the object that the pickle holds.
  absl::StatusOr<PickleObject*> Result();
  // Returns the bytes after the pickle, once there is a result.
  absl::Span<const uint8_t> rest() const { return in_; }

 private:
  using Kind = PickleObject::Kind;

  size_t position_of_next() const { return static_cast<size_t>(in_.data() - begin_); }
  absl::Status Execute(uint8_t opcode);
  absl::StatusOr<PickleObject*> New(Kind kind);
  absl::Status PushObject(PickleObject* object);
  absl::StatusOr<PickleObject*> Push(Kind kind);
  absl::Status PushInt(int64_t value, Kind kind);
  absl::StatusOr<PickleObject*> Pop();
  absl::StatusOr<std::vector<PickleObject*>> PopToMark();
  absl::StatusOr<uint64_t> Number(size_t bytes);
  absl::Status PushNumber(size_t bytes);
  // Pushes an integer in little-endian two's complement, which its length precedes.
  absl::Status PushLong();
  absl::Status PushString(size_t length_bytes, Kind kind);
  absl::Status PushTuple(size_t count);
  absl::Status Extend(Kind kind, const std::vector<PickleObject*>& items);
  absl::Status Put(size_t bytes);
  absl::Status Memoize(uint64_t index);
  absl::Status Get(size_t bytes);
  absl::StatusOr<std::string> Line();
  absl::Status PushGlobal(const std::string& module, const std::string& name);
  // Pushes an Encoding without its attributes, which BUILD sets; objects of other classes are refused.
  absl::Status NewEncoding();
  // Pops ('storage', type, key, location, number of values) and pushes that storage. The location, where the tensor
  // was, is ignored.
  absl::Status PushStorage();
  absl::Status Reduce();
  // The arguments are storage, offset, sizes, strides, requires_grad, hooks and, since PyTorch 2.0, metadata.
  absl::Status RebuildTensor(const std::vector<PickleObject*>& arguments);

  absl::Span<const uint8_t> in_;
  const uint8_t* const begin_ = in_.data();
  std::vector<std::unique_ptr<PickleObject>> objects_;
  std::vector<PickleObject*> stack_;
  absl::flat_hash_map<uint64_t, PickleObject*> memo_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_FORMATS_PICKLE_MACHINE_H_
