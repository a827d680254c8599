#include "server/model/decoder.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>

#include "gmock/gmock.h"
#include "tests/model/load_fixture.h"
#include "tests/support/random_decoder.h"

namespace hookline {
namespace {

at::Tensor SomeIds(int64_t batch, int64_t positions) {
  return at::arange(batch * positions, at::kLong).mul_(7).remainder_(250).view({batch, positions});
}

std::vector<int> AllHookPoints(const Model& model) {
  std::vector<int> all(static_cast<size_t>(model.hook_points().size()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// Counts by name how often LibTorch's operators run while this object lives.
class OperatorCounts {
 public:
  OperatorCounts() {
    counts_.clear();
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback([](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
          ++counts_[function.name()];
          return nullptr;
        }).scopes({at::RecordScope::FUNCTION}));
  }
  ~OperatorCounts() { at::removeCallback(handle_); }

  int of(const std::string& name) const { return counts_.count(name) == 0 ? 0 : counts_.at(name); }
  int products() const { return of("aten::mm") + of("aten::addmm"); }
  int copies() const { return of("aten::copy_") + of("aten::clone") + of("aten::contiguous"); }

 private:
  static thread_local std::map<std::string, int> counts_;
  at::CallbackHandle handle_;
};
thread_local std::map<std::string, int> OperatorCounts::counts_;

void Pass(Model& model, const std::vector<int>& hook_points) {
  const absl::Status status = model.Forward(SomeIds(2, 9), {}, hook_points, [](int, const at::Tensor&) {});
  ASSERT_TRUE(status.ok()) << status;
}

TEST(DecoderTest, HandsOutEveryHookPointOnceInItsOrderAndShape) {
  const auto model = RandomDecoder({});
  std::vector<int> seen;
  const absl::Status status =
      model->Forward(SomeIds(2, 9), {}, AllHookPoints(*model), [&](int hook_point, const at::Tensor& value) {
        seen.push_back(hook_point);
        EXPECT_EQ(value.sizes(), at::IntArrayRef({18, model->hook_points()[hook_point].width}));
        EXPECT_EQ(value.scalar_type(), at::kFloat);
        EXPECT_TRUE(at::isfinite(value).all().item<bool>());
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(seen, AllHookPoints(*model));
}

TEST(DecoderTest, NothingIsComputedBeyondTheDeepestHookPointAlsoInsideABlock) {
  const auto model = RandomDecoder({});
  const auto products = [&](const std::vector<std::string>& names) {
    std::vector<int> hook_points;
    for (const std::string& name : names) hook_points.push_back(model->hook_points().Find(name));
    const OperatorCounts counts;
    Pass(*model, hook_points);
    return counts.products();
  };
  // A block has six products with weights: q, k, v, the output of attention, and the MLP's two.
  EXPECT_EQ(products({"hook_embed"}), 0);
  EXPECT_EQ(products({"blocks.0.ln1.hook_normalized"}), 0);
  EXPECT_EQ(products({"blocks.0.attn.hook_q"}), 1);
  EXPECT_EQ(products({"blocks.0.attn.hook_z"}), 3);
  EXPECT_EQ(products({"blocks.0.hook_resid_mid"}), 4);
  EXPECT_EQ(products({"blocks.0.mlp.hook_post"}), 5);
  EXPECT_EQ(products({"blocks.0.hook_resid_post"}), 6);
  EXPECT_EQ(products({"blocks.1.mlp.hook_pre"}), 11);
  EXPECT_EQ(products({"ln_final.hook_normalized"}), 12);
}

TEST(DecoderTest, WhatNoHookPointNeedsIsNotComputedOnTheWay) {
  const auto model = RandomDecoder({});
  const auto products = [&](const std::string& name) {
    const OperatorCounts counts;
    Pass(*model, {model->hook_points().Find(name)});
    return counts.products();
  };
  EXPECT_EQ(products("blocks.1.attn.hook_k"), 6 + 1);
  EXPECT_EQ(products("blocks.1.attn.hook_v"), 6 + 1);
}

TEST(DecoderTest, TapsCopyNothing) {
  const auto model = RandomDecoder({});
  const auto copies = [&](const std::vector<int>& hook_points) {
    const OperatorCounts counts;
    Pass(*model, hook_points);
    return counts.copies();
  };
  std::vector<int> all = AllHookPoints(*model);
  // The position embedding is the only tensor that does not have rows for each sequence.
  all.erase(all.begin() + model->hook_points().Find("hook_pos_embed"));
  Pass(*model, all);  // makes the masks
  EXPECT_EQ(copies(all), copies({all.back()}));
}

class KeptTapsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(KeptTapsTest, NothingWritesToATappedTensorLater) {
  const auto model = GetParam() == std::string("random") ? RandomDecoder({})
                                                         : LoadFixture(std::string("nanochat/") + GetParam(), "cpu");
  ASSERT_NE(model, nullptr);
  std::vector<at::Tensor> kept, copied;
  const absl::Status status =
      model->Forward(SomeIds(2, 9), {}, AllHookPoints(*model), [&](int, const at::Tensor& value) {
        kept.push_back(value);
        copied.push_back(value.clone());
      });
  ASSERT_TRUE(status.ok()) << status;
  Pass(*model, AllHookPoints(*model));
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_TRUE(at::equal(kept[i], copied[i])) << model->hook_points()[static_cast<int>(i)].name;
  }
}

TEST_P(KeptTapsTest, EachHookPointAloneIsWhatItIsAmongAll) {
  const auto model = GetParam() == std::string("random") ? RandomDecoder({})
                                                         : LoadFixture(std::string("nanochat/") + GetParam(), "cpu");
  ASSERT_NE(model, nullptr);
  std::vector<at::Tensor> together;
  const at::Tensor ids = SomeIds(2, 9);
  ASSERT_TRUE(model
                  ->Forward(ids, {}, AllHookPoints(*model),
                            [&](int, const at::Tensor& value) { together.push_back(value.clone()); })
                  .ok());
  for (int i = 0; i < model->hook_points().size(); ++i) {
    at::Tensor alone;
    ASSERT_TRUE(model->Forward(ids, {}, {i}, [&](int, const at::Tensor& value) { alone = value.clone(); }).ok());
    ASSERT_TRUE(alone.defined());
    EXPECT_LE((alone - together[i]).norm().item<double>(), 1e-6 * together[i].norm().item<double>())
        << model->hook_points()[i].name;
  }
}

INSTANTIATE_TEST_SUITE_P(, KeptTapsTest, ::testing::Values("random", "A-gqa", "F-gqa", "I-mha"), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(DecoderTest, MemoryThatIsNotThereIsResourceExhaustedAndTheModelStaysUsable) {
  const auto model = RandomDecoder({});
  // Laid out, the ids would take 2^50 bytes, more than an address space holds.
  const at::Tensor ids = at::zeros({1, 1}, at::kLong).expand({int64_t{1} << 37, 1024});
  const absl::Status status = model->Forward(ids, {}, {0}, [](int, const at::Tensor&) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  Pass(*model, {0});
}

TEST(DecoderTest, AnIdThatTheTableLacksIsAnErrorAndNotACrash) {
  const auto model = RandomDecoder({});
  const absl::Status status =
      model->Forward(at::full({1, 3}, 100000, at::kLong), {}, {0}, [](int, const at::Tensor&) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  Pass(*model, {0});
}

TEST(RandomDecoderTest, TheSeedDecidesTheWeights) {
  RandomDecoderOptions options;
  const auto rows = [&] {
    const auto model = RandomDecoder(options);
    at::Tensor rows;
    const int last = model->hook_points().size() - 1;
    EXPECT_TRUE(
        model->Forward(SomeIds(1, 5), {}, {last}, [&](int, const at::Tensor& value) { rows = value.clone(); }).ok());
    return std::pair(rows, model->info().fingerprint);
  };
  const auto [first, fingerprint] = rows();
  const auto [again, same_fingerprint] = rows();
  options.seed = 2;
  const auto [other, other_fingerprint] = rows();
  EXPECT_TRUE(at::equal(first, again));
  EXPECT_FALSE(at::allclose(first, other));
  EXPECT_EQ(fingerprint, same_fingerprint);
  EXPECT_NE(fingerprint, other_fingerprint);
  EXPECT_EQ(fingerprint.size(), 32u);
}

}  // namespace
}  // namespace hookline
