// Converts dictionaries, and searches for the tokens that excite their latents most, between the proto and plain C++.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_TOP_ACTIVATIONS_CONVERSION_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_TOP_ACTIVATIONS_CONVERSION_H_

#include "hookline/v1/dictionary_service.pb.h"
#include "server/capture/top_activations_plan.h"
#include "server/model/model.h"

namespace hookline {

v1::Dictionary ToProto(const Model& model, const AttachedDictionary& dictionary);

// The engine checks everything.
TopActivationsRequest FromProto(const v1::TopActivationsRequest& request);

v1::TopActivationsResponse ToProto(const TopActivationsStarted& started);
v1::TopActivationsResponse ToProto(const TopActivationsCheckpoint& checkpoint);
// Includes the plan's quantiles.
v1::TopActivationsResponse ToProto(const TopActivationsPlan& plan, const LatentFinding& finding);
v1::TopActivationsResponse ToProto(const TopActivationsEnded& ended);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_TOP_ACTIVATIONS_CONVERSION_H_
