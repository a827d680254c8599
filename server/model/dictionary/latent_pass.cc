#include "server/model/dictionary/latent_pass.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "server/model/catch_torch.h"
#include "server/model/dictionary/dictionary.h"

namespace hookline {
namespace {

at::Tensor TokenIds(absl::Span<const std::vector<uint32_t>> sequences) {
  const auto positions = static_cast<int64_t>(sequences[0].size());
  at::Tensor ids = at::empty({static_cast<int64_t>(sequences.size()), positions}, at::kLong);
  int64_t* next = ids.data_ptr<int64_t>();
  for (const std::vector<uint32_t>& sequence : sequences) next = std::copy(sequence.begin(), sequence.end(), next);
  return ids;
}

}  // namespace

absl::StatusOr<std::vector<float>> RunLatentPass(Model& model, absl::Span<const std::vector<uint32_t>> sequences,
                                                 int dictionary, absl::Span<const int64_t> latents) {
  const AttachedDictionary& attached = model.dictionaries()[static_cast<size_t>(dictionary)];
  const at::Device device(model.info().device);
  std::vector<float> values;
  absl::Status status = CatchTorch([&]() -> absl::Status {
    c10::InferenceMode inference;
    const at::Tensor wanted = at::tensor(at::ArrayRef<int64_t>(latents.data(), latents.size()), at::kLong).to(device);
    at::Tensor found;
    const auto tap = [&](int, const at::Tensor& rows) {
      const Dictionary& encoder = *attached.dictionary;
      // A model's stages may lie on several devices.
      found = encoder.Latents(encoder.PartOf(rows), wanted.to(rows.device()));
    };
    absl::Status run = model.Forward(TokenIds(sequences).to(device), /*lengths=*/{}, {attached.hook_point}, tap);
    if (!run.ok()) return run;
    const at::Tensor host = found.t().contiguous().cpu();
    const float* const data = host.data_ptr<float>();
    values.assign(data, data + host.numel());
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return values;
}

}  // namespace hookline
