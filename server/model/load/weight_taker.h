// Takes a checkpoint's tensors by name, checks their shapes, and brings them to their device and dtype. A tensor that
// is missing, misshapen or left over is an error with its name.
//
//   WeightTaker take(state_dict, device, dtype);
//   layer.query.weight = take.Linear("layers.0.q.weight", width, heads * head_width);
//   ...
//   RETURN_IF_ERROR(take.Finish());     // the first error, or what was left over
//   ASSIGN_OR_RETURN(info.fingerprint, take.Fingerprint(config.ToString()));
//
// With a taker that only counts, the same calls return the size of the weights before any is read:
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
  // A taker that counts checks names, types and shapes but reads nothing. It returns undefined tensors and zeros, as a
  // taker does after an error.
  enum class Mode { kRead, kCount };

  // Errors name `weights.path`.
  WeightTaker(const StateDict& weights, at::Device device, at::ScalarType dtype, Mode mode = Mode::kRead)
      : weights_(weights), device_(device), dtype_(dtype) {
    if (mode == Mode::kRead) reader_.emplace(weights);
  }

  // Sets whether the unembedding is taken, which hook points do not need. The default is true.
  void set_evaluates(bool evaluates) { evaluates_ = evaluates; }
  bool evaluates() const { return evaluates_; }

  // Sets the device of each weight, by its name; by default all go to the taker's device.
  void set_device_of(std::function<at::Device(const std::string& name)> device_of) {
    device_of_ = std::move(device_of);
  }
  at::ScalarType dtype() const { return dtype_; }

  bool Has(const std::string& name) const { return weights_.tensors.count(name) != 0; }

  // Takes a weight stored as (out, in); returns it as (in, out), in the model's dtype.
  at::Tensor Linear(const std::string& name, int64_t in, int64_t out);
  // Takes a tensor in the model's dtype.
  at::Tensor Get(const std::string& name, const std::vector<int64_t>& sizes);
  // Takes a tensor in the dtype in which it is stored.
  at::Tensor Table(const std::string& name, const std::vector<int64_t>& sizes);
  // Returns the table `name`, which was taken as `values`, as the weight `as`, which the checkpoint does not have. It
  // is a copy only if `as` goes to another device.
  at::Tensor Again(const std::string& name, const at::Tensor& values, const std::string& as);
  // Takes a tensor in float32.
  at::Tensor Wide(const std::string& name, const std::vector<int64_t>& sizes);
  // Takes a tensor of bytes, on the host, that is needed while others are read and is not counted.
  at::Tensor Bytes(const std::string& name, const std::vector<int64_t>& sizes);
  // Takes `sizes` in the model's dtype from a tensor of bytes of `stored` sizes; for `decode` see WeightReader::Decode.
  at::Tensor Decoded(const std::string& name, const std::vector<int64_t>& stored, const std::vector<int64_t>& sizes,
                     WeightReader::DecodePiece decode);
  // Takes `count` numbers, on the host.
  std::vector<double> Numbers(const std::string& name, int64_t count);
  // Ignores a tensor that is not used but belongs in the checkpoint. Sizes are checked unless empty.
  void Ignore(const std::string& name, const std::vector<int64_t>& sizes = {});

  // Ignores the tensors that were not taken and that `unused` accepts, and returns their names. Call it last.
  std::vector<std::string> IgnoreRest(
      absl::FunctionRef<bool(const std::string& name, const StoredTensor& tensor)> unused);

  // The number of values in the tensors that were taken or were ignored with a check of their sizes.
  int64_t parameters() const { return parameters_; }
  // Returns the bytes of each tensor that was taken, on its device, by name.
  const std::map<std::string, int64_t>& taken() const { return taken_; }

  // Returns the first error; otherwise an error if a tensor was not taken.
  absl::Status Finish() const;

  // Returns the fingerprint of all weights and `configuration`, as WeightReader::Finish. Call it after Finish(), on a
  // taker that reads.
  absl::StatusOr<std::string> Fingerprint(absl::string_view configuration) { return reader_->Finish(configuration); }

 private:
  // Returns the file's description of a floating-point weight of these sizes, or null after an error.
  const StoredTensor* Find(const std::string& name, const std::vector<int64_t>& sizes);
  // The same for any type.
  const StoredTensor* FindOfAnyType(const std::string& name, const std::vector<int64_t>& sizes);
  const StoredTensor* FindBytes(const std::string& name, const std::vector<int64_t>& sizes);
  // Returns the values of a weight that was found; undefined after an error and in a taker that counts.
  at::Tensor Read(const std::string& name, at::ScalarType dtype);
  at::Tensor OrError(absl::StatusOr<at::Tensor> values);
  // Returns the weight on its device, in `dtype` or else in its stored dtype; undefined after an error.
  at::Tensor Take(const std::string& name, const std::vector<int64_t>& sizes, std::optional<at::ScalarType> dtype);

  at::Device DeviceOf(const std::string& name) const { return device_of_ ? device_of_(name) : device_; }

  const StateDict& weights_;
  std::optional<WeightReader> reader_;  // none in a taker that counts
  const at::Device device_;
  const at::ScalarType dtype_;
  std::function<at::Device(const std::string& name)> device_of_;
  bool evaluates_ = true;
  std::map<std::string, int64_t> taken_;  // the bytes on the device by name
  int64_t parameters_ = 0;
  absl::Status status_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_WEIGHT_TAKER_H_
