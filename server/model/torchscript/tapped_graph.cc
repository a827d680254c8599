#include "server/model/torchscript/tapped_graph.h"

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/base/status.h"

namespace hookline {
namespace {

namespace aten = c10::aten;
namespace attr = c10::attr;
namespace jit = torch::jit;
namespace prim = c10::prim;

// The most nodes that inlining copies. A model of 100 blocks has some 20,000. A small file can double the graph with
// each level of calls, and would take all memory without a limit.
constexpr int64_t kMaxNodes = 1'000'000;

// The most tensors in one module's output.
constexpr size_t kMaxTupleElements = 256;

constexpr absl::string_view kConditional =
    "is called under a condition or in a loop that is decided only at run time, so its calls have no fixed names";

// Returns a name from the file in a form that can be sent: printable ASCII.
std::string Printable(const std::string& name) {
  return absl::c_all_of(name, [](unsigned char c) { return absl::ascii_isprint(c); }) ? name : absl::CHexEscape(name);
}

// Tracing names the second call of a module `forward1`.
bool IsForward(const std::string& method) {
  return absl::StartsWith(method, "forward") &&
         absl::c_all_of(absl::string_view(method).substr(7), [](char c) { return absl::ascii_isdigit(c); });
}

int64_t CountNodes(const jit::Block& block) {
  int64_t count = 1;
  for (const jit::Node* node : block.nodes()) {
    ++count;
    for (const jit::Block* inner : node->blocks()) count += CountNodes(*inner);
  }
  return count;
}

bool IsPrimitive(const c10::IValue& value) {
  return value.isBool() || value.isInt() || value.isDouble() || value.isNone() || value.isString();
}

// A call of a module; an empty path stands for the whole module.
struct Call {
  std::string path;
  std::string class_name;
};

// A tensor that a call returned. It is the output of a copy at the place where the call returned, which
// marks that place.
struct Marker {
  int call = 0;  // index into calls_
  std::string element;
};

class Tapper {
 public:
  explicit Tapper(const jit::Module& module) : module_(module) {
    for (const auto& [path, submodule] : module.named_modules()) {
      auto [known, is_new] = paths_.emplace(submodule._ivalue().get(), path);
      if (!is_new) tapped_.refused[Printable(path)] = absl::StrCat("is the same module as ", Printable(known->second));
    }
  }

  absl::StatusOr<TappedGraph> Run() {
    auto forward = module_.find_method("forward");
    if (!forward) return absl::FailedPreconditionError("it has no method 'forward'");
    graph_ = forward->graph()->copy();
    RETURN_IF_ERROR(SettleInputs(forward->function().getSchema()));
    {
      jit::WithInsertPoint at_start(*graph_->nodes().begin());
      none_ = graph_->insertConstant(c10::IValue());
    }
    objects_[graph_->inputs()[0]] = module_._ivalue();
    RETURN_IF_ERROR(Walk(graph_->block(), /*conditional=*/false));

    TORCH_CHECK(graph_->outputs().size() == 1, "forward returns ", graph_->outputs().size(), " values");
    Record(Call{"", ClassName(*module_.type())}, graph_->outputs()[0], graph_->return_node());
    graph_->eraseOutput(0);
    RETURN_IF_ERROR(Name());
    jit::EliminateDeadCode(graph_);
    tapped_.graph = graph_;
    return std::move(tapped_);
  }

 private:
  static std::string ClassName(const c10::ClassType& type) { return type.name() ? type.name()->name() : "?"; }

  static absl::Status AssignsAttribute(const jit::Node& node) {
    return absl::FailedPreconditionError(
        absl::StrCat("its forward assigns the attribute '", Printable(node.s(attr::name)),
                     "', so rows would depend on earlier passes; export it without a cache or other state"));
  }

  // Leaves the module, the token ids and at most an attention mask as inputs; other inputs take their defaults.
  absl::Status SettleInputs(const c10::FunctionSchema& schema) {
    const auto& arguments = schema.arguments();
    TORCH_CHECK(arguments.size() == graph_->inputs().size(), "forward's graph has ", graph_->inputs().size(),
                " inputs, its signature ", arguments.size());
    if (arguments.size() < 2 || !graph_->inputs()[1]->type()->isSubtypeOf(*c10::TensorType::get())) {
      return absl::FailedPreconditionError(absl::StrCat(
          "its forward must take a tensor of token ids (batch, positions) first; it is ", Signature(schema)));
    }
    jit::WithInsertPoint at_start(*graph_->nodes().begin());
    for (size_t i = arguments.size() - 1; i >= 2; --i) {
      const c10::Argument& argument = arguments[i];
      jit::Value* input = graph_->inputs()[i];
      c10::IValue value;
      if (argument.default_value()) {
        value = *argument.default_value();
      } else if (i == 2 && argument.name() == "attention_mask" &&
                 argument.type()->kind() == c10::TypeKind::TensorType) {
        tapped_.takes_mask = true;
        continue;
      } else if (argument.type()->kind() != c10::TypeKind::OptionalType) {
        return absl::FailedPreconditionError(absl::StrCat(
            "its forward takes '", Printable(argument.name()),
            "' without a default; besides token ids only a tensor 'attention_mask' in second place can be given: ",
            Signature(schema)));
      }
      input->replaceAllUsesWith(graph_->insertConstant(value));
      graph_->eraseInput(i);
    }
    return absl::OkStatus();
  }

  static std::string Signature(const c10::FunctionSchema& schema) {
    std::string text;
    for (const c10::Argument& argument : schema.arguments()) {
      absl::StrAppend(&text, text.empty() ? "" : ", ", argument.name(), ": ", argument.type()->repr_str());
    }
    return Printable(absl::StrCat("forward(", text.substr(0, 400), ")"));
  }

  // Inlines the calls in `block` in their order. `conditional`: whether only a run decides that the block is executed.
  absl::Status Walk(jit::Block* block, bool conditional) {
    jit::Node* node = *block->nodes().begin();
    while (node != block->return_node()) {
      jit::Node* previous = node->prev();
      jit::Node* next = node->next();
      if (node->kind() == prim::GetAttr) {
        Bind(node);
      } else if (node->kind() == prim::SetAttr) {
        return AssignsAttribute(*node);
      } else if (node->kind() == prim::CallMethod) {
        auto object = objects_.find(node->input(0));
        if (object != objects_.end()) {
          const std::string method = node->s(attr::name);
          const c10::intrusive_ptr<c10::ivalue::Object> called = object->second;
          RETURN_IF_ERROR(Inline(node, called->type()->getMethod(method)));
          if (!returned_.empty()) {
            if (IsForward(method)) Returned(*called, conditional, next);
            next = previous->next();
          }
        }
      } else if (node->kind() == prim::CallFunction && node->input(0)->node()->kind() == prim::Constant) {
        jit::Function* function = node->input(0)->type()->expect<c10::FunctionType>()->function();
        if (jit::tryToGraphFunction(*function) != nullptr) {
          node->removeInput(0);
          RETURN_IF_ERROR(Inline(node, *function));
          next = previous->next();
        }
      } else if (node->kind() == prim::If && jit::toIValue(node->input(0))) {
        TakeBranch(node, jit::toIValue(node->input(0))->toBool() ? node->blocks()[0] : node->blocks()[1]);
        next = previous->next();
      } else {
        for (jit::Block* inner : node->blocks()) RETURN_IF_ERROR(Walk(inner, /*conditional=*/true));
        Fold(node);
      }
      node = next;
    }
    return absl::OkStatus();
  }

  // Replaces the call by the nodes of `function` and sets `returned_` to its results. If the function has no nodes,
  // leaves the call and sets `returned_` to empty.
  absl::Status Inline(jit::Node* call, jit::Function& function) {
    returned_.clear();
    jit::GraphFunction* callee = jit::tryToGraphFunction(function);
    if (callee == nullptr) return absl::OkStatus();
    callee->ensure_defined();
    nodes_ += CountNodes(*callee->graph()->block());
    if (nodes_ > kMaxNodes) {
      return absl::FailedPreconditionError(absl::StrCat("its forward has more than ", kMaxNodes, " operations"));
    }
    returned_ = jit::inlineCallTo(call, callee, callee->graph().get());
    return absl::OkStatus();
  }

  // Follows modules through attributes, and folds everything else but tensors, so that conditions on it can be decided.
  void Bind(jit::Node* node) {
    auto object = objects_.find(node->input(0));
    if (object == objects_.end()) return;
    c10::IValue value = object->second->getAttr(node->s(attr::name));
    if (value.isModule()) {
      objects_[node->output()] = value.toObject();
    } else if (IsPrimitive(value)) {
      Replace(node, value);
    } else if (value.isTensor()) {
      node->output()->setType(c10::TensorType::get());
    } else if (value.isList() || value.isGenericDict()) {
      containers_.push_back(node);
    }
  }

  void Replace(jit::Node* node, const c10::IValue& value) {
    jit::WithInsertPoint here(node);
    node->output()->replaceAllUsesWith(graph_->insertConstant(value));
    node->destroy();
  }

  // Computes a number, text or None that follows from constants.
  void Fold(jit::Node* node) {
    if (node->outputs().size() != 1 || node->inputs().empty() || !node->blocks().empty()) return;
    if (node->kind() == aten::__is__ || node->kind() == aten::__isnot__) {
      auto may_be_none = [](const jit::Value* value) {
        const c10::TypeKind kind = value->type()->kind();
        return kind != c10::TypeKind::TensorType && kind != c10::TypeKind::TupleType && kind != c10::TypeKind::IntType;
      };
      if (node->input(1)->type()->kind() == c10::TypeKind::NoneType && !may_be_none(node->input(0))) {
        return Replace(node, node->kind() == aten::__isnot__);
      }
    }
    switch (node->output()->type()->kind()) {
      case c10::TypeKind::BoolType:
      case c10::TypeKind::IntType:
      case c10::TypeKind::FloatType:
      case c10::TypeKind::NoneType:
      case c10::TypeKind::StringType:
        break;
      default:
        return;
    }
    for (const jit::Value* input : node->inputs()) {
      if (!jit::toIValue(input)) return;
    }
    if (node->maybeOperator() == nullptr || node->hasSideEffects() || node->isNondeterministic()) return;
    auto outputs = jit::runNodeIfInputsAreConstant(node);
    if (outputs && outputs->size() == 1 && IsPrimitive(outputs->front())) Replace(node, outputs->front());
  }

  void TakeBranch(jit::Node* node, jit::Block* taken) {
    for (auto it = taken->nodes().begin(); it != taken->nodes().end();) {
      jit::Node* moved = *it++;
      moved->moveBefore(node);
    }
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      node->outputs()[i]->replaceAllUsesWith(taken->outputs()[i]);
    }
    node->destroy();
  }

  void Returned(const c10::ivalue::Object& object, bool conditional, jit::Node* next) {
    auto path = paths_.find(&object);
    if (path == paths_.end() || path->second.empty()) return;  // not reachable by attributes, or the module itself
    called_.insert(path->second);
    if (conditional) {
      conditional_.insert(path->second);
    } else {
      Record(Call{path->second, ClassName(*object.type())}, returned_.at(0), next);
    }
  }

  // Marks, before `next`, the values that `call` returned.
  void Record(Call call, jit::Value* value, jit::Node* next) {
    calls_.push_back(std::move(call));
    jit::WithInsertPoint here(next);
    elements_ = 0;
    Mark(value, "");
  }

  // Counts the tuple's elements against those of the call's value so far.
  bool Unpacks(const c10::TupleType& tuple) {
    elements_ += tuple.elements().size();
    return !tuple.elements().empty() && elements_ <= kMaxTupleElements;
  }

  void Mark(jit::Value* value, const std::string& element) {
    const c10::TypePtr& type = value->type();
    const int call = static_cast<int>(calls_.size()) - 1;
    if (type->isSubtypeOf(*c10::TensorType::get())) {
      jit::Node* copy = graph_->insertNode(graph_->create(aten::clone, {value, none_}));
      markers_[copy] = Marker{call, element};
    } else if (const auto tuple = type->cast<c10::TupleType>(); tuple && Unpacks(*tuple)) {
      jit::Node* node = value->node();
      if (node->kind() != prim::TupleConstruct) node = graph_->insertNode(graph_->createTupleUnpack(value));
      const bool constructed = node->kind() == prim::TupleConstruct;
      const std::vector<jit::Value*> parts = constructed ? node->inputs().vec() : node->outputs().vec();
      unnamed_.push_back({Marker{call, element},
                          absl::StrCat("returns a tuple; name an element, [0] to [", parts.size() - 1, "], such as ")});
      for (size_t i = 0; i < parts.size(); ++i) Mark(parts[i], absl::StrCat(element, "[", i, "]"));
    } else {
      unnamed_.push_back({Marker{call, element},
                          absl::StrCat("returns ", type->repr_str().substr(0, 200), ", where a tensor is needed")});
    }
  }

  using CallsByPath = std::map<std::string, std::vector<int>>;

  // Returns the named calls of each module in their order. The number of calls of a module that is also called under a
  // condition is not fixed.
  CallsByPath CallsOf(const std::vector<jit::Node*>& ordered) {
    CallsByPath calls_of;
    std::set<int> seen;
    auto note = [&](int call) {
      if (seen.insert(call).second) calls_of[calls_[call].path].push_back(call);
    };
    for (jit::Node* node : ordered) note(markers_[node].call);
    for (const auto& [marker, reason] : unnamed_) note(marker.call);
    return calls_of;
  }

  std::string NameOf(const Marker& marker, const CallsByPath& calls_of) const {
    const std::string& path = calls_[marker.call].path;
    const std::vector<int>& calls = calls_of.at(path);
    std::string text = path.empty() ? "output" : Printable(path);
    if (calls.size() > 1) absl::StrAppend(&text, "@", absl::c_find(calls, marker.call) - calls.begin());
    return text + marker.element;
  }

  // Refuses, with the reasons, the names that a client could expect but that do not exist; `taken` are those that do.
  void Refuse(const CallsByPath& calls_of, const std::set<std::string>& taken) {
    for (const auto& [marker, reason] : unnamed_) {
      const std::string text = NameOf(marker, calls_of);
      tapped_.refused.emplace(text, absl::EndsWith(reason, " ") ? absl::StrCat(reason, text, "[0]") : reason);
    }
    for (const auto& [path, calls] : calls_of) {
      if (calls.size() < 2) continue;
      const std::string text = Printable(path);
      tapped_.refused.emplace(text, absl::StrCat("is called ", calls.size(), " times; name a call, ", text, "@0 to ",
                                                 text, "@", calls.size() - 1));
    }
    for (const std::string& path : conditional_) tapped_.refused[Printable(path)] = std::string(kConditional);
    for (const auto& [object, path] : paths_) {
      if (path.empty() || called_.count(path) != 0) continue;
      if (object->type()->findMethod("forward") == nullptr) continue;  // a container
      tapped_.refused.emplace(Printable(path), "never runs in forward");
    }
    for (const std::string& name : taken) tapped_.refused.erase(name);
  }

  // Names the markers in the order of the graph, makes them its outputs, and removes the copies that are not needed.
  absl::Status Name() {
    std::vector<jit::Node*> ordered;
    for (jit::Node* node : graph_->nodes()) {
      if (markers_.count(node) != 0) ordered.push_back(node);
    }
    const CallsByPath calls_of = CallsOf(ordered);
    jit::AliasDb aliases(graph_);
    for (const jit::Node* node : containers_) {
      if (aliases.hasWriters(node->output())) return AssignsAttribute(*node);
    }
    std::vector<bool> written_later;
    for (jit::Node* node : ordered) written_later.push_back(aliases.hasWriters(node->input(0)));

    std::set<std::string> names;
    std::set<int> returned;
    for (size_t i = 0; i < ordered.size(); ++i) {
      jit::Node* node = ordered[i];
      const Marker& marker = markers_[node];
      const Call& call = calls_[marker.call];
      returned.insert(marker.call);
      TappedValue tap;
      tap.name = NameOf(marker, calls_of);
      tap.class_name = call.class_name;
      std::tie(tap.container, tap.number) = Numbered(call.path);
      tap.calls_returned = static_cast<int>(returned.size());
      // A module can be named `output` too; its path then comes first.
      if (conditional_.count(call.path) == 0 && names.insert(tap.name).second) {
        graph_->registerOutput(node->output());
        tapped_.taps.push_back(std::move(tap));
      }
      if (!written_later[i]) {
        node->output()->replaceAllUsesWith(node->input(0));
        node->destroy();
      }
    }

    Refuse(calls_of, names);
    return absl::OkStatus();
  }

  static std::pair<std::string, int> Numbered(const std::string& path) {
    size_t from = 0;
    for (absl::string_view part : absl::StrSplit(path, '.')) {
      int number = 0;
      if (absl::SimpleAtoi(part, &number) && number >= 0) return {path.substr(0, from == 0 ? 0 : from - 1), number};
      from += part.size() + 1;
    }
    return {"", -1};
  }

  const jit::Module module_;
  std::unordered_map<const c10::ivalue::Object*, std::string> paths_;  // the first path, as in Python's named_modules
  std::shared_ptr<jit::Graph> graph_;
  jit::Value* none_ = nullptr;
  std::unordered_map<const jit::Value*, c10::intrusive_ptr<c10::ivalue::Object>> objects_;
  std::vector<const jit::Node*> containers_;  // nodes that read a list or a dictionary of a module
  int64_t nodes_ = 0;
  std::vector<jit::Value*> returned_;
  size_t elements_ = 0;
  std::vector<Call> calls_;
  std::unordered_map<jit::Node*, Marker> markers_;
  std::vector<std::pair<Marker, std::string>> unnamed_;
  std::set<std::string> called_;
  std::set<std::string> conditional_;
  TappedGraph tapped_;
};

}  // namespace

absl::StatusOr<TappedGraph> TapModuleCalls(const torch::jit::Module& module) { return Tapper(module).Run(); }

std::shared_ptr<torch::jit::Graph> CutToTaps(const TappedGraph& tapped, absl::Span<const int> taps) {
  std::shared_ptr<jit::Graph> graph = tapped.graph->copy();
  for (int i = static_cast<int>(graph->outputs().size()) - 1; i >= 0; --i) {
    if (!std::binary_search(taps.begin(), taps.end(), i)) graph->eraseOutput(i);
  }
  std::set<const jit::Node*> needed;
  for (const jit::Value* output : graph->outputs()) needed.insert(output->node());
  // Begins at the end, so that nothing uses the removed nodes.
  jit::Node* node = graph->return_node()->prev();
  while (node != graph->return_node() && needed.count(node) == 0) {
    jit::Node* previous = node->prev();
    node->destroy();
    node = previous;
  }
  jit::EliminateDeadCode(graph);
  return graph;
}

}  // namespace hookline
