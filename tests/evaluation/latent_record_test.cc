#include "server/capture/latent_record.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

namespace hookline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr LatentLimits kLimits = {/*top=*/3, /*context=*/4, /*max_values=*/256};

struct Sequence {
  std::vector<uint32_t> ids;
  std::vector<float> values;
};

std::vector<Sequence> RandomSequences(int count, int length) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<Sequence> sequences(static_cast<size_t>(count));
  for (Sequence& one : sequences) {
    for (int t = 0; t < length; ++t) {
      one.ids.push_back(static_cast<uint32_t>(random() % 1000));
      one.values.push_back(normal(random));
    }
  }
  return sequences;
}

LatentRecord RecordOf(const std::vector<Sequence>& sequences, const std::vector<size_t>& order, LatentLimits limits) {
  LatentRecord record(limits);
  for (size_t i : order) record.Add(static_cast<int64_t>(i), sequences[i].ids, sequences[i].values);
  return record;
}

std::vector<size_t> Ascending(size_t count) {
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = i;
  return order;
}

void ExpectEqual(const LatentFindings& a, const LatentFindings& b) {
  EXPECT_EQ(a.firings, b.firings);
  EXPECT_EQ(a.values, b.values);
  EXPECT_EQ(a.counts, b.counts);
  EXPECT_EQ(a.spacing, b.spacing);
  ASSERT_EQ(a.examples.size(), b.examples.size());
  for (size_t i = 0; i < a.examples.size(); ++i) {
    EXPECT_EQ(a.examples[i].activation, b.examples[i].activation);
    EXPECT_EQ(a.examples[i].sequence, b.examples[i].sequence);
    EXPECT_EQ(a.examples[i].position, b.examples[i].position);
    EXPECT_EQ(a.examples[i].token_ids, b.examples[i].token_ids);
    EXPECT_EQ(a.examples[i].activations, b.examples[i].activations);
  }
}

TEST(LatentRecordTest, TheStrongestTokensComeWithTheirContextAndOfEqualOnesTheEarlier) {
  LatentRecord record(kLimits);
  record.Add(0, {10, 11, 12, 13, 14, 15}, {0, 2, 0, 0, 0, 5});
  record.Add(1, {20, 21, 22, 23, 24, 25}, {1, 0, 0, 2, -3, std::nanf("")});
  const LatentFindings found = record.findings();
  EXPECT_EQ(found.firings, 4);
  EXPECT_THAT(found.values, ElementsAre(1, 2, 5));
  EXPECT_THAT(found.counts, ElementsAre(1, 2, 1));
  ASSERT_THAT(found.examples, SizeIs(3));
  EXPECT_EQ(found.examples[0].position, 5);
  EXPECT_EQ(found.examples[0].first_position, 2);
  EXPECT_THAT(found.examples[0].token_ids, ElementsAre(12, 13, 14, 15));
  EXPECT_THAT(found.examples[0].activations, ElementsAre(0, 0, 0, 5));
  EXPECT_EQ(found.examples[1].sequence, 0);
  EXPECT_THAT(found.examples[1].token_ids, ElementsAre(10, 11, 12, 13));
  EXPECT_EQ(found.examples[2].sequence, 1);
  EXPECT_THAT(found.examples[2].token_ids, ElementsAre(21, 22, 23, 24));
}

TEST(LatentRecordTest, SequencesShorterThanAContextAreWholeContexts) {
  LatentRecord record(kLimits);
  record.Add(0, {1, 2}, {0, 1});
  EXPECT_THAT(record.findings().examples[0].token_ids, ElementsAre(1, 2));
}

TEST(LatentRecordTest, QuantilesAreValuesByTheirRank) {
  LatentRecord record({/*top=*/1, /*context=*/1, /*max_values=*/256});
  for (int i = 100; i >= 1; --i) record.Add(i, {1}, {static_cast<float>(i)});
  const LatentFindings found = record.findings();
  EXPECT_EQ(found.Quantile(0), 1);
  EXPECT_EQ(found.Quantile(0.01), 1);
  EXPECT_EQ(found.Quantile(0.5), 50);
  EXPECT_EQ(found.Quantile(0.995), 100);
  EXPECT_EQ(found.Quantile(1), 100);
}

TEST(LatentRecordTest, ManyDistinctValuesKeepTheirCountsAndAreTooSmallByLessThanTheSpacing) {
  const std::vector<Sequence> sequences = RandomSequences(300, 20);
  const LatentFindings exact = RecordOf(sequences, Ascending(300), {3, 4, 100000}).findings();
  const LatentFindings coarse = RecordOf(sequences, Ascending(300), kLimits).findings();
  EXPECT_EQ(exact.spacing, 0);
  EXPECT_GT(coarse.spacing, 0);
  EXPECT_LE(coarse.values.size(), 256u);
  EXPECT_EQ(coarse.firings, exact.firings);
  for (double share : {0.0, 0.1, 0.5, 0.9, 0.99, 1.0}) {
    EXPECT_LE(coarse.Quantile(share), exact.Quantile(share));
    EXPECT_GE(coarse.Quantile(share) * (1 + coarse.spacing), exact.Quantile(share));
  }
}

TEST(LatentRecordTest, WhatIsFoundDependsNeitherOnTheOrderNorOnWhereItWasCut) {
  const std::vector<Sequence> sequences = RandomSequences(300, 20);
  std::vector<size_t> order = Ascending(300);
  const LatentFindings whole = RecordOf(sequences, order, kLimits).findings();
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  ExpectEqual(RecordOf(sequences, order, kLimits).findings(), whole);
  for (size_t cut : {0u, 1u, 17u, 299u}) {
    SCOPED_TRACE(cut);
    const std::vector<size_t> first(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(cut));
    auto record = LatentRecord::Restore(kLimits, RecordOf(sequences, first, kLimits).findings(), "latents[0]");
    ASSERT_TRUE(record.ok()) << record.status();
    for (size_t i = cut; i < order.size(); ++i) {
      record->Add(static_cast<int64_t>(order[i]), sequences[order[i]].ids, sequences[order[i]].values);
    }
    ExpectEqual(record->findings(), whole);
  }
}

TEST(LatentRecordTest, FindingsThatNoRecordMakesAreRefusedByField) {
  const LatentFindings good = RecordOf(RandomSequences(300, 20), Ascending(300), kLimits).findings();
  const auto refused = [&](const auto& change) {
    LatentFindings bad = good;
    change(bad);
    return std::string(LatentRecord::Restore(kLimits, std::move(bad), "resume.latents[2]").status().message());
  };
  EXPECT_EQ(refused([](LatentFindings&) {}), "");
  EXPECT_THAT(refused([](LatentFindings& f) { ++f.firings; }), HasSubstr("resume.latents[2].firings"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.counts[1] = -1; }), HasSubstr("counts[1]"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.counts[1] = std::numeric_limits<int64_t>::max(); }),
              HasSubstr("counts[1]"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.counts.pop_back(); }), HasSubstr("resume.latents[2].counts"));
  EXPECT_THAT(refused([](LatentFindings& f) { std::swap(f.values[0], f.values[1]); }), HasSubstr("values[1]"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.values[3] = std::nextafter(f.values[3], 9.0F); }),
              HasSubstr("values[3]"));
  EXPECT_THAT(refused([](LatentFindings& f) {
                f.values.assign(257, 1);
                f.counts.assign(257, 1);
              }),
              HasSubstr("more than 256"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.spacing = 0.3; }), HasSubstr("value_spacing"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.examples.pop_back(); }), HasSubstr("resume.latents[2].examples"));
  EXPECT_THAT(refused([](LatentFindings& f) { std::swap(f.examples[0], f.examples[1]); }), HasSubstr("examples[1]"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.examples[0].activations.pop_back(); }), HasSubstr("examples[0]"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.examples[0].position = -5; }), HasSubstr("examples[0]"));
  EXPECT_THAT(refused([](LatentFindings& f) { f.examples[0].activation = 99; }), HasSubstr("activation"));
}

}  // namespace
}  // namespace hookline
