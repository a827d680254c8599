// Reads the descriptions of datasets: the sidecars that `python -m hookline.pack` writes beside its files.
#ifndef HOOKLINE_SERVER_DATASET_SIDECAR_H_
#define HOOKLINE_SERVER_DATASET_SIDECAR_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "server/dataset/dataset.h"

namespace hookline {

struct Sidecar {
  std::string tokenizer_fingerprint;
  std::string method;
  std::map<std::string, std::string> options;
  int64_t documents = 0;
  std::string warning;  // a sentence if the sidecar cannot be used, or is not the dataset's; empty otherwise
};

// The sidecars of the server's datasets. They are filled before the server starts, and then only read, from any thread.
class Sidecars {
 public:
  // Reads the sidecar `PATH.json` beside `source`, which is that of Dataset::Open, if there is one.
  void Read(const Dataset& dataset, absl::string_view source);

  // Returns null for a dataset without a sidecar.
  const Sidecar* Get(absl::string_view dataset) const;

  // Returns a sentence if the dataset was packed with another tokenizer than the model's, whose fingerprint is
  // `fingerprint`; empty if it was not, or if either tokenizer is unknown.
  std::string TokenizerWarning(absl::string_view dataset, absl::string_view model, absl::string_view fingerprint) const;

 private:
  std::map<std::string, Sidecar, std::less<>> by_dataset_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_DATASET_SIDECAR_H_
