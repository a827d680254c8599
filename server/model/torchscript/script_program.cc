#include "server/model/torchscript/script_program.h"

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/frontend/lexer.h>
#include <torch/csrc/jit/frontend/parser.h>
#include <torch/csrc/jit/serialization/import_read.h>
#include <torch/csrc/jit/serialization/import_source.h>

#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "server/base/escape.h"
#include "server/base/status.h"
#include "server/model/torchscript/allowed_operators.h"
#include "server/model/torchscript/deadline.h"

// LibTorch declares this in a header that distributions leave out.
namespace torch::jit {
TORCH_API void populate_upgraders_graph_map();
}  // namespace torch::jit

namespace hookline {
namespace {

namespace jit = torch::jit;
using caffe2::serialize::PyTorchStreamReader;

constexpr absl::string_view kCodeFolder = "code/";
constexpr absl::string_view kSetState = "__setstate__";
constexpr absl::string_view kWarn = "aten::warn";
// The classes of LibTorch in C++ that an archive can hold: packed weights of quantised layers, which only compute.
constexpr absl::string_view kPackedWeights = "__torch__.torch.classes.quantized.";
// The most operators that one `__setstate__` can run. Those of quantised layers have about thirty.
constexpr int64_t kMaxSetStateNodes = 100'000;

std::shared_ptr<jit::Source> ReadSource(PyTorchStreamReader& archive, const std::string& record) {
  auto [data, size] = archive.getRecord(record);
  return std::make_shared<jit::Source>(std::string(static_cast<const char*>(data.get()), size), record, 1);
}

// Returns whether computing `tree` calls anything beyond what the compiler itself writes for literals.
bool Calls(const jit::TreeRef& tree) {
  if (tree->kind() == jit::TK_APPLY) {
    const jit::Expr callee = jit::Apply(tree).callee();
    const bool is_literal = (callee.kind() == jit::TK_VAR && (jit::Var(callee).name().name() == "float" ||
                                                              jit::Var(callee).name().name() == "annotate")) ||
                            (callee.kind() == '.' && jit::Select(callee).selector().name() == "device" &&
                             jit::Select(callee).value().kind() == jit::TK_VAR);
    if (!is_literal) return true;
  }
  for (const jit::TreeRef& part : tree->trees()) {
    if (Calls(part)) return true;
  }
  return false;
}

// Compiling runs the default values of a function's parameters and of a named tuple's fields, so these are checked.
absl::Status CheckDefaults(const jit::TreeRef& tree, const std::string& record) {
  const auto bad = [&](absl::string_view what) {
    return absl::FailedPreconditionError(
        absl::StrCat("record ", Quoted(record), " computes ", what, ", which compiling it would run"));
  };
  if (tree->kind() == jit::TK_PARAM) {
    const auto value = jit::Param(tree).defaultValue();
    return value.present() && Calls(value.get().tree()) ? bad("a parameter's default value") : absl::OkStatus();
  }
  if (tree->kind() == jit::TK_CLASS_DEF) {
    for (const jit::Stmt& line : jit::ClassDef(tree).body()) {
      if (line.kind() != jit::TK_DEF && Calls(line.tree())) return bad("a value in the body of a class");
    }
  }
  for (const jit::TreeRef& part : tree->trees()) RETURN_IF_ERROR(CheckDefaults(part, record));
  return absl::OkStatus();
}

// Returns the classes in the record, by their qualified names. Parses everything but definitions as
// LibTorch's importer does.
absl::StatusOr<std::vector<std::string>> ParseRecord(PyTorchStreamReader& archive, const std::string& record) {
  const std::string module =
      absl::StrReplaceAll(absl::StripSuffix(absl::StripPrefix(record, kCodeFolder), ".py"), {{"/", "."}});
  std::vector<std::string> classes;
  jit::Parser parser(ReadSource(archive, record));
  jit::Lexer& lexer = parser.lexer();
  if (lexer.cur().kind == jit::TK_IDENT && lexer.cur().text() == "op_version_set") {
    while (lexer.cur().kind != jit::TK_NEWLINE) lexer.next();
    lexer.expect(jit::TK_NEWLINE);
  }
  while (lexer.cur().kind != jit::TK_EOF) {
    if (lexer.nextIf(jit::TK_IMPORT)) {
      while (lexer.cur().kind != jit::TK_NEWLINE) lexer.next();
      lexer.expect(jit::TK_NEWLINE);
    } else if (lexer.cur().kind == jit::TK_CLASS_DEF) {
      const jit::TreeRef tree = parser.parseClass();
      classes.push_back(absl::StrCat(module, ".", jit::ClassDef(tree).name().name()));
      RETURN_IF_ERROR(CheckDefaults(tree, record));
    } else {
      RETURN_IF_ERROR(CheckDefaults(parser.parseFunction(/*is_method=*/false), record));
    }
  }
  return classes;
}

// Compiles the archive's code without running any of it, and walks the graphs.
class Program {
 public:
  explicit Program(PyTorchStreamReader& archive)
      : archive_(archive),
        unit_(std::make_shared<jit::CompilationUnit>()),
        importer_(
            unit_, &constants_, [this](const std::string& qualifier) { return FindSource(qualifier); },
            archive.version()) {}

  absl::Status Check(const std::vector<std::string>& classes) {
    jit::populate_upgraders_graph_map();
    ReadConstants();
    for (const std::string& name : classes) {
      const c10::TypePtr type = importer_.loadType(c10::QualifiedName(name));
      if (const auto class_type = type->cast<c10::ClassType>()) RETURN_IF_ERROR(CheckClass(*class_type));
    }
    for (jit::Function* function : unit_->get_functions()) {
      RETURN_IF_ERROR(CheckFunction(*function, Quoted(function->qualname().qualifiedName())));
    }
    return absl::OkStatus();
  }

 private:
  std::shared_ptr<jit::Source> FindSource(const std::string& qualifier) {
    const std::string record = absl::StrCat(kCodeFolder, absl::StrReplaceAll(qualifier, {{".", "/"}}), ".py");
    return archive_.hasRecord(record) ? ReadSource(archive_, record) : nullptr;
  }

  // Objects among the constants keep their types but get no values, since their `__setstate__` would have
  // to make those.
  void ReadConstants() {
    if (!archive_.hasRecord("constants.pkl")) return;
    const jit::TypeResolver find_type = [this](const c10::QualifiedName& name) {
      return c10::StrongTypePtr(unit_, importer_.loadType(name));
    };
    const jit::ObjLoader make_object = [](const at::StrongTypePtr& type, const c10::IValue& /*state*/) {
      return c10::ivalue::Object::create(type, type.type_->expectRef<c10::ClassType>().numAttributes());
    };
    const c10::IValue constants = jit::readArchiveAndTensors("constants", "", "constants/", find_type, make_object,
                                                             at::Device(at::kCPU), archive_);
    for (const c10::IValue& constant : constants.toTupleRef().elements()) constants_.push_back(constant);
  }

  absl::Status CheckClass(const c10::ClassType& type) {
    const std::string name = type.name() ? type.name()->qualifiedName() : "";
    const auto check = [&](jit::Function* function) {
      return CheckFunction(*function, absl::StrCat(Quoted(function->name()), " of ", Quoted(name)));
    };
    for (jit::Function* method : type.methods()) RETURN_IF_ERROR(check(method));
    for (jit::Function* hook : type.getForwardHooks()) RETURN_IF_ERROR(check(hook));
    for (jit::Function* hook : type.getForwardPreHooks()) RETURN_IF_ERROR(check(hook));
    if (jit::Function* set_state = type.findMethod(std::string(kSetState))) {
      ASSIGN_OR_RETURN(const int64_t nodes, SetStateNodes(*set_state, name));
      if (nodes > kMaxSetStateNodes) {
        return absl::FailedPreconditionError(absl::StrCat(Quoted(kSetState), " of ", Quoted(name), " runs more than ",
                                                          kMaxSetStateNodes, " operators while the file is loaded"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckFunction(jit::Function& function, const std::string& where) {
    jit::GraphFunction* const graph = jit::tryToGraphFunction(function);
    if (graph == nullptr || !checked_.insert(&function).second) return absl::OkStatus();
    graph->ensure_defined();
    return CheckBlock(*graph->graph()->block(), where);
  }

  absl::Status CheckBlock(const jit::Block& block, const std::string& where) {
    for (const jit::Node* node : block.nodes()) {
      const std::string name = node->kind().toQualString();
      if (name != kWarn && !OnlyComputes(name)) {
        return absl::FailedPreconditionError(
            absl::StrCat(where, " calls ", Quoted(name),
                         ", which is not on the list of operators that only compute; modules that reach files, "
                         "processes or state beyond a call are not loaded"));
      }
      if (jit::Function* callee = Callee(*node)) {
        if (jit::tryToGraphFunction(*callee) == nullptr && !IsPackedWeights(*node)) {
          return absl::FailedPreconditionError(
              absl::StrCat(where, " calls ", Quoted(callee->name()),
                           " of a class in C++; only packed quantised weights are supported"));
        }
        RETURN_IF_ERROR(CheckFunction(*callee, Quoted(callee->qualname().qualifiedName())));
      }
      for (const jit::Block* inner : node->blocks()) RETURN_IF_ERROR(CheckBlock(*inner, where));
    }
    return absl::OkStatus();
  }

  // Returns the function that a call runs; null for another node, and for a call through an interface. The class behind
  // an interface belongs to the archive, and all of its classes are checked.
  static jit::Function* Callee(const jit::Node& node) {
    if (node.kind() == c10::prim::CallFunction) {
      return node.input(0)->type()->expectRef<c10::FunctionType>().function();
    }
    if (node.kind() != c10::prim::CallMethod) return nullptr;
    const auto type = node.input(0)->type()->cast<c10::ClassType>();
    return type == nullptr ? nullptr : &type->getMethod(node.s(c10::attr::name));
  }

  static bool IsPackedWeights(const jit::Node& call) {
    const auto type = call.input(0)->type()->cast<c10::ClassType>();
    return type != nullptr && type->name() && absl::StartsWith(type->name()->qualifiedName(), kPackedWeights);
  }

  // Returns the most operators that running `function` executes, including everything that it calls; counting stops
  // somewhat above the limit.
  absl::StatusOr<int64_t> SetStateNodes(jit::Function& function, const std::string& class_name) {
    jit::GraphFunction* const graph = jit::tryToGraphFunction(function);
    if (graph == nullptr) return 1;
    const auto [known, is_new] = set_state_nodes_.emplace(&function, 0);
    if (!is_new) return known->second;
    graph->ensure_defined();
    ASSIGN_OR_RETURN(const int64_t nodes, SetStateNodes(*graph->graph()->block(), class_name));
    return set_state_nodes_[&function] = nodes;
  }

  absl::StatusOr<int64_t> SetStateNodes(const jit::Block& block, const std::string& class_name) {
    int64_t nodes = 0;
    for (const jit::Node* node : block.nodes()) {
      const bool through_interface = node->kind() == c10::prim::CallMethod && Callee(*node) == nullptr;
      if (node->kind() == c10::prim::Loop || node->kind().toQualString() == kWarn || through_interface) {
        return absl::FailedPreconditionError(absl::StrCat(
            Quoted(kSetState), " of ", Quoted(class_name), " uses ", Quoted(node->kind().toQualString()),
            node->kind() == c10::prim::Loop ? "" : " in a way", " that is not allowed while a file is loaded"));
      }
      ++nodes;
      if (jit::Function* callee = Callee(*node)) {
        ASSIGN_OR_RETURN(const int64_t called, SetStateNodes(*callee, class_name));
        nodes += called;
      }
      for (const jit::Block* inner : node->blocks()) {
        ASSIGN_OR_RETURN(const int64_t inside, SetStateNodes(*inner, class_name));
        nodes += inside;
      }
      if (nodes > kMaxSetStateNodes) break;
    }
    return nodes;
  }

  PyTorchStreamReader& archive_;
  const std::shared_ptr<jit::CompilationUnit> unit_;
  std::vector<at::IValue> constants_;
  jit::SourceImporter importer_;
  std::unordered_set<const jit::Function*> checked_;
  std::unordered_map<const jit::Function*, int64_t> set_state_nodes_;
};

void RemoveWarnings(jit::Block* block) {
  for (auto it = block->nodes().begin(); it != block->nodes().end();) {
    jit::Node* const node = *it++;
    if (node->kind().toQualString() == kWarn) {
      node->destroy();
      continue;
    }
    for (jit::Block* inner : node->blocks()) RemoveWarnings(inner);
  }
}

void ConfineFunction(jit::Function& function) {
  jit::GraphFunction* const graph = jit::tryToGraphFunction(function);
  if (graph == nullptr) return;
  graph->ensure_defined();
  RemoveWarnings(graph->graph()->block());
  AddDeadlineChecks(graph->graph()->block());
}

}  // namespace

absl::StatusOr<std::vector<std::string>> CheckProgram(PyTorchStreamReader& archive) {
  // This is a form older than TorchScript's current archives, which LibTorch reads differently.
  if (archive.hasRecord("model.json")) {
    return absl::FailedPreconditionError("it has a format from before PyTorch 1.3; save it again with a newer version");
  }
  std::vector<std::string> classes;
  for (const std::string& record : archive.getAllRecords()) {
    if (!absl::StartsWith(record, kCodeFolder) || !absl::EndsWith(record, ".py")) continue;
    ASSIGN_OR_RETURN(std::vector<std::string> defined, ParseRecord(archive, record));
    classes.insert(classes.end(), std::make_move_iterator(defined.begin()), std::make_move_iterator(defined.end()));
  }
  RETURN_IF_ERROR(Program(archive).Check(classes));
  return classes;
}

void Confine(jit::CompilationUnit& unit, const std::vector<std::string>& classes) {
  std::unordered_set<const jit::Function*> confined;
  const auto confine = [&](jit::Function* function) {
    if (confined.insert(function).second) ConfineFunction(*function);
  };
  for (jit::Function* function : unit.get_functions()) confine(function);
  for (const std::string& name : classes) {
    const c10::NamedTypePtr named = unit.get_type(c10::QualifiedName(name));
    const auto type = named == nullptr ? nullptr : named->cast<c10::ClassType>();
    if (type == nullptr) continue;
    for (jit::Function* method : type->methods()) confine(method);
  }
}

}  // namespace hookline
