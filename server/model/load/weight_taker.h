// Takes a checkpoint's tensors by name, each checked for its shape, to where a decoder uses them; what is missing,
// misshapen or left over is an error with its name.
//
//   WeightTaker take(state_dict, device, dtype);
//   layer.query.weight = take.Linear("layers.0.q.weight", width, heads * head_width);
//   ...
//   RETURN_IF_ERROR(take.Finish());     // the first error, or what was left over
//   ASSIGN_OR_RETURN(info.fingerprint, take.Fingerprint(config.ToString()));
//
// The same calls on a taker that only counts say what the weights will take, before any is read:
//
//   WeightTaker count(state_dict, device, dtype, WeightTaker::Mode::kCount);
#ifndef HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_TAKER_H_
#define HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_TAKER_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/model/load/state_dict.h"
#include "server/model/load/weight_reader.h"

namespace hookline {

class WeightTaker {
 public:
  // A taker that counts checks names, types and shapes, reads nothing, and gives undefined tensors and zeros, as a
  // taker does after an error.
  enum class Mode { kRead, kCount };

  // Errors name `weights.path`.
  WeightTaker(const StateDict& weights, at::Device device, at::ScalarType dtype, Mode mode = Mode::kRead)
      : weights_(weights), device_(device), dtype_(dtype) {
    if (mode == Mode::kRead) reader_.emplace(weights);
  }

  // Says whether the unembedding is taken, which hook points do without. It is unless this is called with false.
  void set_evaluates(bool evaluates) { evaluates_ = evaluates; }
  bool evaluates() const { return evaluates_; }

  // Says where each weight goes, by its name; otherwise all go to the taker's device.
  void set_device_of(std::function<at::Device(const std::string& name)> device_of) {
    device_of_ = std::move(device_of);
  }
  at::ScalarType dtype() const { return dtype_; }

  bool Has(const std::string& name) const { return weights_.tensors.count(name) != 0; }

  // Stored as (out, in); returned as (in, out), in the model's dtype.
  at::Tensor Linear(const std::string& name, int64_t in, int64_t out);
  // Takes a tensor in the model's dtype.
  at::Tensor Get(const std::string& name, const std::vector<int64_t>& sizes);
  // Takes a tensor in the dtype in which it is stored.
  at::Tensor Table(const std::string& name, const std::vector<int64_t>& sizes);
  // The table `name`, which was taken as `values`, once more as the weight `as`, which the checkpoint does not have:
  // another tensor only if that one goes to another device.
  at::Tensor Again(const std::string& name, const at::Tensor& values, const std::string& as);
  // Takes a tensor in float32.
  at::Tensor Wide(const std::string& name, const std::vector<int64_t>& sizes);
  // A tensor of bytes, on the host, that is needed while others are read and not counted.
  at::Tensor Bytes(const std::string& name, const std::vector<int64_t>& sizes);
  // Takes `sizes` in the model's dtype, from a tensor of bytes of `stored` sizes; `decode` as WeightReader::Decode's.
  at::Tensor Decoded(const std::string& name, const std::vector<int64_t>& stored, const std::vector<int64_t>& sizes,
                     WeightReader::DecodePiece decode);
  // `count` numbers, on the host.
  std::vector<double> Numbers(const std::string& name, int64_t count);
  // Ignores a tensor that is not used, but rightly there. Sizes are checked unless empty.
  void Ignore(const std::string& name, const std::vector<int64_t>& sizes = {});

  // Ignores what nobody took and `unused` accepts; their names. Call it last.
  std::vector<std::string> IgnoreRest(
      absl::FunctionRef<bool(const std::string& name, const StoredTensor& tensor)> unused);

  // Values of the tensors that were taken, and of those ignored with their sizes checked.
  int64_t parameters() const { return parameters_; }
  // Returns the bytes that each tensor that was taken has on its device, by name.
  const std::map<std::string, int64_t>& taken() const { return taken_; }

  // The first error; without one, whether all of the checkpoint was taken.
  absl::Status Finish() const;

  // Returns, after Finish() and by a taker that reads, the fingerprint of all weights and `configuration`, as
  // WeightReader::Finish.
  absl::StatusOr<std::string> Fingerprint(absl::string_view configuration) { return reader_->Finish(configuration); }

 private:
  // Returns what the file says of a weight of the wanted form, or null after an error.
  const StoredTensor* Find(const std::string& name, const std::vector<int64_t>& sizes);
  // The same without regard to the tensor's type.
  const StoredTensor* FindOfAnyType(const std::string& name, const std::vector<int64_t>& sizes);
  const StoredTensor* FindBytes(const std::string& name, const std::vector<int64_t>& sizes);
  // The values of a weight that was found; undefined after an error, and where nothing is read.
  at::Tensor Read(const std::string& name, at::ScalarType dtype);
  at::Tensor OrError(absl::StatusOr<at::Tensor> values);
  // The weight on the device, in `dtype` or, where there is none, as it is stored; undefined after an error.
  at::Tensor Take(const std::string& name, const std::vector<int64_t>& sizes, std::optional<at::ScalarType> dtype);

  at::Device DeviceOf(const std::string& name) const { return device_of_ ? device_of_(name) : device_; }

  const StateDict& weights_;
  std::optional<WeightReader> reader_;  // none where nothing is read
  const at::Device device_;
  const at::ScalarType dtype_;
  std::function<at::Device(const std::string& name)> device_of_;
  bool evaluates_ = true;
  std::map<std::string, int64_t> taken_;  // with their bytes on the device
  int64_t parameters_ = 0;
  absl::Status status_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_TAKER_H_
