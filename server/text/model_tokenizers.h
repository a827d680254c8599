// The tokenizers of the server's models.
//
//   ModelTokenizers tokenizers;
//   tokenizers.Discover("d20", "checkpoints/d20");
//   ASSIGN_OR_RETURN(const Tokenizer* tokenizer, tokenizers.Find("d20"));
#ifndef HOOKLINE_SERVER_TEXT_MODEL_TOKENIZERS_H_
#define HOOKLINE_SERVER_TEXT_MODEL_TOKENIZERS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/text/tokenizer.h"

namespace hookline {

// Filled before the server starts and only read afterwards, from any thread.
class ModelTokenizers {
 public:
  // Opens `path`, a tokenizer's file or a directory that holds one, for a model. Errors are those of OpenTokenizer, and
  // NOT_FOUND for a directory without a tokenizer.
  absl::Status Open(const std::string& model, const std::string& path);

  // Looks for a tokenizer beside the model's checkpoint. A file that cannot be used counts as missing; Find says why.
  void Discover(const std::string& model, const std::string& checkpoint);

  // Returns the model's tokenizer, or null if it has none.
  const Tokenizer* Get(absl::string_view model) const;

  // Returns the same; FAILED_PRECONDITION, field `text`, says which files were looked for or what is wrong with the
  // file found.
  absl::StatusOr<const Tokenizer*> Find(absl::string_view model) const;

  // Returns why the model has no tokenizer; empty if it has one.
  std::string WhyMissing(absl::string_view model) const;

  // Returns a sentence if the tokenizer can give ids that a model with `vocabulary_size` tokens does not have.
  std::optional<std::string> Warning(absl::string_view model, int64_t vocabulary_size) const;

 private:
  struct Entry {
    std::unique_ptr<const Tokenizer> tokenizer;
    std::string why_missing;
  };
  std::map<std::string, Entry, std::less<>> by_model_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_TEXT_MODEL_TOKENIZERS_H_
