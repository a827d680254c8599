#include "server/model/torchscript/torchscript_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <limits>
#include <list>
#include <map>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/base/status.h"
#include "server/model/load/memory_check.h"
#include "server/model/scalar_type.h"
#include "server/model/torchscript/deadline.h"
#include "server/model/torchscript/script_file.h"
#include "server/model/torchscript/tapped_graph.h"

namespace hookline {
namespace {

namespace jit = torch::jit;
namespace prim = c10::prim;

// The largest number that proto and flags can hold; used if the file does not give the limit.
constexpr int64_t kUnknownLimit = std::numeric_limits<int32_t>::max();

// The most sets of hook points whose graphs are kept. Captures run one at a time, so a busy server has few sets; making
// a graph again takes some milliseconds.
constexpr size_t kMaxPrograms = 64;

// The most hook points of one model, as many as a decoder of a thousand blocks has.
constexpr size_t kMaxHookPoints = 65536;

// The most bytes of a hook point's name, which must fit into a request's entry.
constexpr size_t kMaxNameBytes = 1024;

// Batches that distinguish dimensions of batch and positions from those that have the same size by chance.
struct ProbeShape {
  int64_t batch;
  int64_t positions;
};
constexpr ProbeShape kProbes[] = {{2, 5}, {3, 7}};

std::string ShapeText(c10::IntArrayRef shape) { return absl::StrCat("(", absl::StrJoin(shape, ", "), ")"); }

// The meaning of the first dimensions of a module's output.
enum class Leading { kBatchPositions, kPositionsBatch, kOnePositions, kPositions };

struct Layout {
  Leading leading = Leading::kBatchPositions;
  int64_t width = 1;

  bool operator==(const Layout& other) const { return leading == other.leading && width == other.width; }
};

// Returns the layouts that a tensor of `shape` can have, given the batch that went in.
std::vector<Layout> LayoutsOf(c10::IntArrayRef shape, ProbeShape probe) {
  std::vector<Layout> layouts;
  auto consider = [&](Leading leading, std::initializer_list<int64_t> first) {
    if (shape.size() < first.size() || !std::equal(first.begin(), first.end(), shape.begin())) return;
    Layout layout{leading, 1};
    for (size_t i = first.size(); i < shape.size(); ++i) layout.width *= shape[i];
    if (layout.width > 0) layouts.push_back(layout);
  };
  consider(Leading::kBatchPositions, {probe.batch, probe.positions});
  consider(Leading::kPositionsBatch, {probe.positions, probe.batch});
  consider(Leading::kOnePositions, {1, probe.positions});
  consider(Leading::kPositions, {probe.positions});
  return layouts;
}

// Calls `visit` with every constant in the graph and its value.
template <typename Visit>
void ForEachConstant(jit::Block* block, const Visit& visit) {
  for (jit::Node* node : block->nodes()) {
    if (node->kind() == prim::Constant && node->outputs().size() == 1) {
      if (auto value = jit::toIValue(node->output())) visit(node, *value);
    }
    for (jit::Block* inner : node->blocks()) ForEachConstant(inner, visit);
  }
}

bool IsOutOfMemory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  // The interpreter rethrows with a type of its own, so the text has to be searched.
  const absl::string_view text = error.what();
  return absl::StrContains(text, "out of memory") || absl::StrContains(text, "can't allocate memory") ||
         absl::StrContains(text, "not enough memory");
}

class TorchScriptModel : public Model {
 public:
  explicit TorchScriptModel(const TorchScriptOptions& options) : options_(options), device_(options.device) {
    info_.name = options_.name.empty() ? std::filesystem::path(options_.path).filename().string() : options_.name;
  }

  absl::Status Load() {
    // LibTorch first reads the whole file to the host, whatever the device.
    std::error_code unreadable;
    const uintmax_t file_bytes = std::filesystem::file_size(options_.path, unreadable);
    if (!unreadable) RETURN_IF_ERROR(CheckMemory({{info_.name, "cpu", static_cast<int64_t>(file_bytes)}}, MemoryOf));
    ASSIGN_OR_RETURN(ScriptFile file, LoadScriptFile(options_.path));
    module_ = file.module;
    info_.fingerprint = std::move(file.fingerprint);
    c10::NoGradGuard no_grad;
    try {
      RETURN_IF_ERROR(Prepare());
      return Discover();
    } catch (const std::exception& error) {
      if (IsOutOfMemory(error)) {
        return absl::ResourceExhaustedError(
            absl::StrCat(options_.path, ": no memory left on ", options_.device, " while loading: ", OneLine(error)));
      }
      return Failed(OneLine(error));
    }
  }

  absl::Status Forward(const at::Tensor& token_ids, absl::Span<const int64_t> /*lengths*/,
                       absl::Span<const int> hook_points, Tap tap) override {
    const int64_t batch = token_ids.size(0);
    const int64_t positions = token_ids.size(1);
    c10::NoGradGuard no_grad;
    try {
      const Program& program = ProgramFor(hook_points);
      const jit::Stack values = Run(program.code, token_ids);
      blocks_executed_ += program.calls;
      for (size_t i = 0; i < hook_points.size(); ++i) {
        const HookPoint& point = hook_points_[hook_points[i]];
        const at::Tensor& value = values[i].toTensor();
        at::Tensor rows = Rows(value, layouts_[hook_points[i]].leading, batch, positions);
        if (!rows.defined() || rows.numel() != batch * positions * point.width) {
          return Failure(absl::StrCat("hook point '", point.name, "' came with shape ", ShapeText(value.sizes()),
                                      " for ", batch, " sequences of ", positions, " tokens; ",
                                      ShapeText({batch, positions, point.width}), " was expected"));
        }
        tap(hook_points[i], rows.reshape({batch * positions, point.width}).to(ScalarTypeOf(info_.dtype)).detach());
      }
      return absl::OkStatus();
    } catch (const std::exception& error) {
      if (IsOutOfMemory(error)) return absl::ResourceExhaustedError(OneLine(error));
      return Failure(
          absl::StrCat("the module failed on token ids of shape ", ShapeText(token_ids.sizes()), ": ", OneLine(error)));
    }
  }

  int64_t blocks_executed() const override { return blocks_executed_; }

 private:
  struct Program {
    jit::Code code;
    int calls = 0;
  };

  bool limits_known() const { return options_.context_length > 0 && options_.vocabulary_size > 0; }

  // Returns the error of a failed pass. If the server knows no limits, the request may have exceeded them.
  absl::Status Failure(const std::string& message) const {
    if (limits_known()) return absl::InternalError(message);
    return absl::InvalidArgumentError(
        absl::StrCat(message, " (the server was not told the model's context length and vocabulary size)"));
  }

  absl::Status Failed(absl::string_view message) const {
    return absl::FailedPreconditionError(absl::StrCat(options_.path, ": ", message));
  }

  // Rewrites the graph and converts weights and constants to the wanted type and device.
  absl::Status Prepare() {
    const c10::ScalarType dtype = ScalarTypeOf(options_.dtype);
    auto tapped = TapModuleCalls(module_);
    if (!tapped.ok()) return Failed(tapped.status().message());
    tapped_ = *std::move(tapped);

    std::vector<jit::Node*> constants;
    int64_t values_in_constants = 0;
    absl::optional<c10::ScalarType> other_dtype;
    ForEachConstant(tapped_.graph->block(), [&](jit::Node* node, const c10::IValue& value) {
      if (value.isDevice()) constants.push_back(node);
      if (!value.isTensor()) return;
      constants.push_back(node);
      values_in_constants += value.toTensor().numel();
      if (value.toTensor().is_floating_point() && value.toTensor().scalar_type() != dtype) {
        other_dtype = value.toTensor().scalar_type();
      }
    });
    for (const at::Tensor& parameter : module_.parameters()) info_.parameters += parameter.numel();
    if (info_.parameters == 0 && values_in_constants > 0) {
      info_.parameters = values_in_constants;
      if (!device_.is_cpu()) {
        return Failed(
            absl::StrCat("it is frozen, so its weights are constants that stay on the CPU, and cannot run on ",
                         options_.device, "; use --device cpu, or save the module without torch.jit.freeze"));
      }
      if (other_dtype) {
        return Failed(absl::StrCat("it is frozen, so its weights stay ", c10::toString(*other_dtype),
                                   " and cannot become ", DtypeName(options_.dtype),
                                   "; choose that --dtype, or save the module without torch.jit.freeze"));
      }
    }
    for (jit::Node* node : constants) {
      c10::IValue value = *jit::toIValue(node->output());
      if (value.isDevice()) {
        value = device_;
      } else {
        at::Tensor tensor = value.toTensor();
        value = tensor.to(device_, tensor.is_floating_point() ? dtype : tensor.scalar_type());
      }
      jit::WithInsertPoint here(node);
      node->output()->replaceAllUsesWith(tapped_.graph->insertConstant(value));
      node->destroy();
    }
    if (!device_.is_cpu()) {
      MemoryNeed need{info_.name, options_.device, 0};
      for (const at::Tensor& tensor : Tensors()) {
        need.bytes += tensor.numel() * static_cast<int64_t>(tensor.is_floating_point() ? DtypeBytes(options_.dtype)
                                                                                       : tensor.element_size());
      }
      RETURN_IF_ERROR(CheckMemory({need}, MemoryOf));
    }
    const auto convert = [&](const at::Tensor& tensor) {
      const c10::ScalarType wanted = tensor.is_floating_point() ? dtype : tensor.scalar_type();
      if (tensor.scalar_type() != wanted || tensor.device() != device_) tensor.set_data(tensor.to(device_, wanted));
    };
    for (const at::Tensor& tensor : Tensors()) convert(tensor);
    return absl::OkStatus();
  }

  // Runs the whole module on zeros and makes hook points of the outputs that have rows.
  absl::Status Discover() {
    if (tapped_.taps.size() > kMaxHookPoints) {
      return Failed(
          absl::StrCat("it has ", tapped_.taps.size(), " module outputs; at most ", kMaxHookPoints, " are supported"));
    }
    const jit::Code code(tapped_.graph, "forward");
    std::vector<std::vector<Layout>> layouts(tapped_.taps.size());  // layouts that fit all probes so far
    absl::flat_hash_map<std::string, std::string> refused(tapped_.refused.begin(), tapped_.refused.end());
    for (const ProbeShape& shape : kProbes) {
      ProbeShape probe = shape;
      if (options_.context_length > 0) probe.positions = std::min(probe.positions, options_.context_length);
      const at::Tensor ids = at::zeros({probe.batch, probe.positions}, at::TensorOptions(device_).dtype(c10::kLong));
      jit::Stack values;
      const int64_t writes_before = Writes();
      try {
        values = Run(code, ids);
      } catch (const std::exception& error) {
        if (IsOutOfMemory(error)) throw;
        return Failed(absl::StrCat("it does not run on token ids of shape ", ShapeText(ids.sizes()), " as ",
                                   DtypeName(options_.dtype), " on ", options_.device, ": ", OneLine(error)));
      }
      if (Writes() != writes_before) {
        return Failed("its forward writes to its buffers, so rows would depend on earlier passes");
      }
      for (size_t i = 0; i < values.size(); ++i) {
        const std::string& name = tapped_.taps[i].name;
        if (refused.contains(name)) continue;
        const at::Tensor& value = values[i].toTensor();
        std::vector<Layout> possible = LayoutsOf(value.sizes(), probe);
        if (&shape != &kProbes[0]) {
          possible.erase(
              std::remove_if(possible.begin(), possible.end(),
                             [&](const Layout& layout) { return !absl::c_linear_search(layouts[i], layout); }),
              possible.end());
        }
        const bool has_rows = !LayoutsOf(value.sizes(), probe).empty();
        layouts[i] = std::move(possible);
        if (name.size() > kMaxNameBytes) {
          refused[name] = absl::StrCat("has a name longer than ", kMaxNameBytes, " bytes");
        } else if (!value.is_floating_point()) {
          refused[name] = absl::StrCat("cannot be captured: its values are ", c10::toString(value.scalar_type()),
                                       ", where a floating type is needed");
        } else if (layouts[i].empty()) {
          refused[name] = absl::StrCat("cannot be captured: it has ",
                                       has_rows ? "rows whose width depends on the input" : "no token axis", "; for ",
                                       probe.batch, " sequences of ", probe.positions, " tokens its shape is ",
                                       ShapeText(value.sizes()), ", where (batch, positions, ...) is needed");
        }
      }
    }
    MakeHookPoints(layouts, std::move(refused));
    if (hook_points_.size() == 0) return Failed("none of its modules returns a tensor (batch, positions, ...)");
    return absl::OkStatus();
  }

  void MakeHookPoints(const std::vector<std::vector<Layout>>& layouts,
                      absl::flat_hash_map<std::string, std::string> refused) {
    // The blocks are the numbered children of the module below which most calls happen.
    std::map<std::string, int> calls_under;
    for (const TappedValue& tap : tapped_.taps) {
      if (tap.number >= 0) ++calls_under[tap.container];
    }
    auto most = std::max_element(calls_under.begin(), calls_under.end(),
                                 [](const auto& a, const auto& b) { return a.second < b.second; });
    auto in_block = [&](const TappedValue& tap) {
      return most != calls_under.end() && tap.number >= 0 && tap.container == most->first;
    };
    size_t last_in_block = 0;
    for (size_t i = 0; i < tapped_.taps.size(); ++i) {
      if (!in_block(tapped_.taps[i])) continue;
      last_in_block = i;
      info_.layers = std::max(info_.layers, tapped_.taps[i].number + 1);
    }
    std::vector<HookPoint> points;
    std::map<int64_t, int> points_of_width;
    int layer = -1;
    for (size_t i = 0; i < tapped_.taps.size(); ++i) {
      const TappedValue& tap = tapped_.taps[i];
      if (in_block(tap)) {
        layer = tap.number;
      } else if (i > last_in_block) {
        layer = info_.layers;
      }
      if (layouts[i].empty() || refused.contains(tap.name)) continue;
      points.push_back(
          {tap.name, layouts[i].front().width, layer, absl::StrCat("Output of this ", tap.class_name, " module.")});
      layouts_.push_back(layouts[i].front());
      tap_of_.push_back(static_cast<int>(i));
      ++points_of_width[layouts[i].front().width];
    }
    auto widest_use = std::max_element(points_of_width.begin(), points_of_width.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    if (widest_use != points_of_width.end()) info_.width = widest_use->first;

    info_.architecture = "torchscript";
    info_.variant = tapped_.taps.empty() ? "" : tapped_.taps.back().class_name;
    info_.dtype = options_.dtype;
    info_.device = options_.device;
    info_.mixes_lengths = false;
    info_.context_length = options_.context_length > 0 ? options_.context_length : kUnknownLimit;
    info_.vocabulary_size = options_.vocabulary_size > 0 ? options_.vocabulary_size : kUnknownLimit;
    info_.details = absl::StrCat(points.size(), " hook points by module path, ", refused.size(), " names refused");
    std::vector<std::string> unknown;
    if (options_.context_length <= 0) unknown.push_back("context length unknown (--context-length)");
    if (options_.vocabulary_size <= 0) unknown.push_back("vocabulary size unknown (--vocab-size)");
    if (!unknown.empty()) {
      const std::string text = absl::StrJoin(unknown, ", ");
      absl::StrAppend(&info_.details, "; ", text);
      info_.warning = absl::StrCat(text, ": requests beyond it are refused only if the module throws");
    }
    hook_points_ = HookPoints(std::move(points), /*aliases=*/{}, std::move(refused));
  }

  // Parameters, buffers and other tensors that are attributes of modules.
  std::vector<at::Tensor> Tensors() const {
    std::vector<at::Tensor> tensors;
    for (const c10::IValue& value : module_.attributes()) {
      if (value.isTensor() && value.toTensor().defined()) tensors.push_back(value.toTensor());
    }
    return tensors;
  }

  // Returns a number that grows when one of the tensors is written to.
  int64_t Writes() const {
    int64_t writes = 0;
    for (const at::Tensor& tensor : Tensors()) writes += tensor._version();
    return writes;
  }

  // Runs `code`, interpreted as written: nothing specializes to shapes, so rows do not depend on earlier passes. Throws
  // the module's exceptions.
  jit::Stack Run(const jit::Code& code, const at::Tensor& token_ids) const {
    jit::Stack stack;
    stack.emplace_back(module_._ivalue());
    stack.emplace_back(token_ids);
    if (tapped_.takes_mask) stack.emplace_back(at::ones_like(token_ids));
    const Deadline deadline(absl::Now() + options_.timeout);
    try {
      jit::InterpreterState(code).run(stack);
    } catch (const std::exception&) {
      if (!deadline.passed()) throw;
      throw std::runtime_error(absl::StrCat("it did not end within ", absl::FormatDuration(options_.timeout),
                                            ", which is all that --torchscript-timeout allows"));
    }
    return stack;
  }

  // Returns the graph that computes only `hook_points`, either one of the most recently used or a new one.
  const Program& ProgramFor(absl::Span<const int> hook_points) {
    for (auto it = programs_.begin(); it != programs_.end(); ++it) {
      if (!std::equal(it->first.begin(), it->first.end(), hook_points.begin(), hook_points.end())) continue;
      programs_.splice(programs_.begin(), programs_, it);
      return it->second;
    }
    std::vector<int> taps;
    for (int index : hook_points) taps.push_back(tap_of_[index]);
    Program program{jit::Code(CutToTaps(tapped_, taps), "forward"), tapped_.taps[taps.back()].calls_returned};
    programs_.emplace_front(std::vector<int>(hook_points.begin(), hook_points.end()), std::move(program));
    if (programs_.size() > kMaxPrograms) programs_.pop_back();
    return programs_.front().second;
  }

  // Returns `value` with the dimensions (batch, positions, ...); undefined if it does not have the shape that
  // the probe found.
  static at::Tensor Rows(const at::Tensor& value, Leading leading, int64_t batch, int64_t positions) {
    std::vector<int64_t> shape = value.sizes().vec();
    if (leading == Leading::kPositionsBatch) {
      const bool fits = shape.size() >= 2 && shape[0] == positions && shape[1] == batch;
      return fits ? value.transpose(0, 1) : at::Tensor();
    }
    if (leading == Leading::kPositions) shape.insert(shape.begin(), 1);
    if (shape.size() < 2 || shape[1] != positions) return {};
    if (leading == Leading::kBatchPositions) return shape[0] == batch ? value : at::Tensor();
    shape[0] = batch;
    return value.expand(shape);
  }

  const TorchScriptOptions options_;
  const c10::Device device_;
  jit::Module module_;
  TappedGraph tapped_;
  std::vector<Layout> layouts_;                               // by hook point
  std::vector<int> tap_of_;                                   // by hook point, into tapped_.taps
  std::list<std::pair<std::vector<int>, Program>> programs_;  // most recently used first
  std::atomic<int64_t> blocks_executed_{0};
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadTorchScript(const TorchScriptOptions& options) {
  if (options.context_length < 0 || options.context_length > kUnknownLimit) {
    return absl::InvalidArgumentError(absl::StrCat("context_length is ", options.context_length, "; 1 to ",
                                                   kUnknownLimit, " is accepted, or 0 if it is unknown"));
  }
  if (options.vocabulary_size < 0 || options.vocabulary_size > kUnknownLimit) {
    return absl::InvalidArgumentError(absl::StrCat("vocabulary_size is ", options.vocabulary_size, "; 1 to ",
                                                   kUnknownLimit, " is accepted, or 0 if it is unknown"));
  }
  if (options.device != "cpu" && (options.context_length == 0 || options.vocabulary_size == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.path, ": a TorchScript model on ", options.device,
                     " needs --context-length and --vocab-size: an index out of range would end the process there"));
  }
  try {
    auto model = std::make_unique<TorchScriptModel>(options);
    RETURN_IF_ERROR(model->Load());
    return model;
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("device '", options.device, "': ", OneLine(error)));
  }
}

}  // namespace hookline
