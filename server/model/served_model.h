// A model as an engine serves it: replicas with the same weights, and the executors of each replica.
#ifndef HOOKLINE_SERVER_MODEL_SERVED_MODEL_H_
#define HOOKLINE_SERVER_MODEL_SERVED_MODEL_H_

#include <memory>
#include <utility>
#include <vector>

#include "server/model/model.h"
#include "server/model/stage.h"

namespace hookline {

struct ServedModel {
  // One executor's thread computes on one of these. A replica of several stages has one for each, so that while one
  // computes a stage of a batch another computes another stage of the next.
  struct Executor {
    std::unique_ptr<Model> model;
    int replica = 0;
    std::vector<Stage> stages;  // the stages of the replica, at least one
  };

  ServedModel() = default;
  // One replica with one executor.
  template <typename OneModel>
  ServedModel(std::unique_ptr<OneModel> model) {  // NOLINT(google-explicit-constructor): a model is a served one
    const ModelInfo& info = model->info();
    std::vector<Stage> stages = {{info.device, 0, info.layers, 0}};
    executors.push_back({std::move(model), 0, std::move(stages)});
  }

  const Model& first() const { return *executors.front().model; }

  std::vector<Executor> executors;  // at least one; in the order of their replicas, which are numbered from 0
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_SERVED_MODEL_H_
