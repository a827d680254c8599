// Reads a config.json field by field. The first wrong one stays as the error, named with its value and what is
// accepted; what is read after it is a harmless value, so that a family reads straight on and asks once at the end.
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

// A view of `json`, which must outlive it. Copies share the error. Throughout, a field that is null counts as missing;
// a missing field without a fallback is an error.
class ConfigReader {
 public:
  // `path` is the file, for messages.
  ConfigReader(const nlohmann::json& json, std::string path);

  // Returns whether the field is there and not null.
  bool Has(const std::string& key) const;
  // Returns whether there is no field at all.
  bool empty() const;
  // Returns the names of all fields.
  std::vector<std::string> Names() const;
  // Returns whether the field is there and null, where that means something else than missing.
  bool IsNull(const std::string& key) const;

  // 1 to `most`.
  int64_t Integer(const std::string& key, std::optional<int64_t> fallback = std::nullopt,
                  int64_t most = kMaxInteger) const;
  // A number of at least 0.
  int64_t Count(const std::string& key, int64_t fallback) const;
  // Finite and positive.
  double Number(const std::string& key, std::optional<double> fallback = std::nullopt) const;
  // Finite and not negative.
  double NumberFrom0(const std::string& key, double fallback) const;
  // An array of finite, positive numbers.
  std::vector<double> Numbers(const std::string& key) const;
  bool Flag(const std::string& key, bool fallback) const;
  std::string Text(const std::string& key, const std::optional<std::string>& fallback = std::nullopt) const;
  std::vector<std::string> Texts(const std::string& key) const;
  // An array of integers from 0.
  std::vector<int64_t> Counts(const std::string& key) const;
  // An array of pairs [array of strings, how often], spelled out; at most `most` strings.
  std::vector<std::string> RepeatedTexts(const std::string& key, int64_t most) const;
  // An object inside this one. Of a missing one every field is missing.
  ConfigReader Object(const std::string& key) const;

  // Makes it an error that the field has its value; `accepted` ends the sentence.
  void Refuse(const std::string& key, absl::string_view accepted) const;
  // The field `key`, where it is there, must say `value`, as `other` does.
  void Agree(const std::string& key, double value, absl::string_view other) const;
  // An error that no single field is.
  void Fail(absl::string_view what) const;

  // FAILED_PRECONDITION for the first error.
  const absl::Status& status() const;

  // This is above any model's; products of two fit 64 bits.
  static constexpr int64_t kMaxInteger = int64_t{1} << 24;

 private:
  struct Shared;

  ConfigReader(const nlohmann::json* json, std::string prefix, std::shared_ptr<Shared> shared);

  const nlohmann::json* Find(const std::string& key) const;
  const nlohmann::json* FindOrFail(const std::string& key, bool optional) const;
  // The array `key`, or an error; null after it.
  const nlohmann::json* Array(const std::string& key, absl::string_view of) const;

  const nlohmann::json* json_;
  std::string prefix_;  // "text_config."
  std::shared_ptr<Shared> shared_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_CONFIG_READER_H_
