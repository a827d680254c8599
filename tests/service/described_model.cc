#include "tests/service/described_model.h"

namespace hookline {
namespace {

class FakeModel final : public Model {
 public:
  explicit FakeModel(int64_t width) {
    info_.name = "fake";
    info_.architecture = "synthetic";
    info_.variant = "rows";
    info_.layers = 2;
    info_.width = width;
    info_.heads = 4;
    info_.key_value_heads = 2;
    info_.context_length = 128;
    info_.vocabulary_size = 1000;
    info_.device = "cpu";
    info_.fingerprint = "000102030405060708090a0b0c0d0e0f";
    info_.parameters = 12345;
    hook_points_ = HookPoints({{"a", width, -1, "The first."}, {"b", width, 1, "The second."}});
  }

  absl::Status Forward(const at::Tensor&, absl::Span<const int64_t>, absl::Span<const int>, Tap) override {
    return absl::UnimplementedError("a fake model has no forward pass");
  }
  int64_t blocks_executed() const override { return 0; }
};

}  // namespace

std::unique_ptr<Model> NewDescribedModel(int64_t width) { return std::make_unique<FakeModel>(width); }

}  // namespace hookline
