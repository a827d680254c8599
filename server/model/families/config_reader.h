// Reads a config.json field by field. The first wrong field becomes the error, which names its value and the accepted
// ones. Every wrong field reads as a harmless value, so that a family can read all fields and check for an error once,
// at the end.
//
//   ConfigReader config(json, "models/gpt2/config.json");
//   const int64_t width = config.Integer("n_embd");
//   ...
//   RETURN_IF_ERROR(config.status());
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_READER_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_READER_H_

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hookline {

// A view of `json`, which must outlive it. Copies share the error. In all functions, a null field counts as missing,
// and a missing field without a fallback is an error.
class ConfigReader {
 public:
  // `path` is the file, for messages.
  ConfigReader(const nlohmann::json& json, std::string path);

  // Returns whether the field exists and is not null.
  bool Has(const std::string& key) const;
  // Returns whether there are no fields.
  bool empty() const;
  // Returns the names of all fields.
  std::vector<std::string> Names() const;
  // Returns whether the field exists and is null, for fields in which null does not mean missing.
  bool IsNull(const std::string& key) const;

  // An integer from 1 to `most`.
  int64_t Integer(const std::string& key, std::optional<int64_t> fallback = std::nullopt,
                  int64_t most = kMaxInteger) const;
  // An integer of at least 0.
  int64_t Count(const std::string& key, int64_t fallback) const;
  // A finite, positive number.
  double Number(const std::string& key, std::optional<double> fallback = std::nullopt) const;
  // A finite number of at least 0.
  double NumberFrom0(const std::string& key, double fallback) const;
  // An array of finite, positive numbers.
  std::vector<double> Numbers(const std::string& key) const;
  bool Flag(const std::string& key, bool fallback) const;
  std::string Text(const std::string& key, const std::optional<std::string>& fallback = std::nullopt) const;
  std::vector<std::string> Texts(const std::string& key) const;
  // An array of integers of at least 0.
  std::vector<int64_t> Counts(const std::string& key) const;
  // Expands an array of pairs [array of strings, number of repetitions]; at most `most` strings.
  std::vector<std::string> RepeatedTexts(const std::string& key, int64_t most) const;
  // An object inside this one. If it is missing, all its fields are missing.
  ConfigReader Object(const std::string& key) const;

  // Adds an error about the field's value; `accepted` is the second half of the message.
  void Refuse(const std::string& key, absl::string_view accepted) const;
  // Adds an error if the field `key` exists and is not `value`, which `other` has.
  void Agree(const std::string& key, double value, absl::string_view other) const;
  // Adds an error that concerns more than one field.
  void Fail(absl::string_view what) const;

  // FAILED_PRECONDITION for the first error.
  const absl::Status& status() const;

  // Larger than any size of a model; the product of two fits 64 bits.
  static constexpr int64_t kMaxInteger = int64_t{1} << 24;

 private:
  struct Shared;

  ConfigReader(const nlohmann::json* json, std::string prefix, std::shared_ptr<Shared> shared);

  const nlohmann::json* Find(const std::string& key) const;
  const nlohmann::json* FindOrFail(const std::string& key, bool optional) const;
  // The array `key`; adds an error and returns null if there is none.
  const nlohmann::json* Array(const std::string& key, absl::string_view of) const;

  const nlohmann::json* json_;
  std::string prefix_;  // for messages: "text_config."
  std::shared_ptr<Shared> shared_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_READER_H_
