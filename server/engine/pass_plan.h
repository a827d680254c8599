// One forward pass over some sequences of a batch: which of them it runs, and which captures take which of its rows.
// Pure: it touches neither the model nor the scheduler.
#ifndef HOOKLINE_SERVER_ENGINE_PASS_PLAN_H_
#define HOOKLINE_SERVER_ENGINE_PASS_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/types/span.h"
#include "server/engine/batch.h"
#include "server/engine/delivery.h"
#include "server/model/hook_points.h"

namespace hookline {

struct PassPlan {
  // A capture that takes rows of the pass.
  struct Member {
    Delivery* delivery = nullptr;
    int64_t first = 0;          // index of the first of the delivery's rows
    std::vector<int64_t> rows;  // among the pass's (sequences * positions); entry i is for the origin `first` + i
    LaunchedPass::Share share;  // `sequences` and `tokens` are those that run for the capture
  };
  // One capture's use of one of the model's hook points.
  struct TapUse {
    size_t member = 0;   // index into `members`
    int hook_point = 0;  // index among the capture's
    int64_t rows = 0;    // how many of the member's it takes, from the first
  };

  // Plans the pass that brings the rows of `batch_items` [begin, end) to `deliveries`, each of which was planned over
  // all items. A sequence of which no row is wanted is not run, unless it belongs to a batch of fixed shape. An empty
  // pass runs nothing.
  PassPlan(absl::Span<Delivery* const> deliveries, absl::Span<const BatchItem> batch_items, size_t begin, size_t end,
           const HookPoints& hook_points);

  bool empty() const { return sequences == 0; }
  // Writes the ids of the (sequences, positions) batch, padded with 0 on the right.
  void FillTokenIds(int64_t* ids) const;
  // Returns how many tokens each of the pass's sequences has.
  std::vector<int64_t> Lengths() const;

  absl::Span<const BatchItem> items;  // [begin, end)
  std::vector<Member> members;
  std::map<int, std::vector<TapUse>> taps;  // by the model's hook point
  std::vector<int64_t> batch_rows;          // each item's index among the pass's sequences; -1: it is not run
  int64_t sequences = 0;
  int64_t positions = 0;  // of the longest sequence
  int64_t tokens = 0;     // padding not counted
  int layers = 1;         // blocks to run, at least 1
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_PASS_PLAN_H_
