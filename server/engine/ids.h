// Ids of the scheduler's objects. The objects themselves never leave it by pointer.
#ifndef HOOKLINE_SERVER_ENGINE_IDS_H_
#define HOOKLINE_SERVER_ENGINE_IDS_H_

#include <cstdint>

namespace hookline {

// Ids are never reused; 0 names nothing.
enum class CaptureId : int64_t {};
enum class FlowId : int64_t {};

constexpr FlowId kNoFlow{0};

// A model's place in the order given to Engine::Create.
enum class ModelId : int {};

// One of a model's executors, by its index among them.
struct ExecutorId {
  ModelId model{};
  int index = 0;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_IDS_H_
