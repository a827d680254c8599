// Names of what the scheduler holds. Nothing that it holds leaves it by pointer.
#ifndef HOOKLINE_SERVER_ENGINE_IDS_H_
#define HOOKLINE_SERVER_ENGINE_IDS_H_

#include <cstdint>

namespace hookline {

// Never reused; 0 names none.
enum class CaptureId : int64_t {};
enum class FlowId : int64_t {};

constexpr FlowId kNoFlow{0};

// A model's place in the order given to Engine::Create.
enum class ModelId : int {};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_ENGINE_IDS_H_
