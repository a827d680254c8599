"""Tests what deploy/check-layers refuses, on made-up sources."""

import importlib.machinery
import importlib.util
import pathlib

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "check-layers"


def load():
    loader = importlib.machinery.SourceFileLoader("check_layers", str(PROGRAM))
    spec = importlib.util.spec_from_loader("check_layers", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


layers = load()


def include(path):
    return f'#include "{path}"\n'


def test_folders_may_include_what_lies_below_them():
    sources = {
        "server/main.cc": include("server/service/server.h"),
        "server/service/server.h": include("server/engine/engine.h"),
        "server/model/families/olmo2.cc": include("server/model/layers.h") + include("server/base/status.h"),
        "client/cli/main.cc": include("client/cpp/client.h") + include("server/base/status.h"),
    }
    assert layers.check_arrows(sources, {}) == []


def test_refuses_includes_that_point_up():
    assert layers.check_arrows({"server/capture/plan.h": include("server/engine/engine.h")}, {})
    assert layers.check_arrows({"server/base/status.h": include("server/main.h")}, {})


def test_refuses_includes_that_point_sideways():
    assert layers.check_arrows({"server/metrics/metrics.cc": include("server/recorder/recorder.h")}, {})
    assert layers.check_arrows({"server/model/families/olmo2.cc": include("server/dataset/dataset.h")}, {})


def test_refuses_folders_that_it_does_not_know():
    assert layers.check_arrows({"server/engine/engine.cc": include("server/new/new.h")}, {})


def test_refuses_clients_that_include_the_servers_inside():
    assert layers.check_arrows({"client/cpp/client.cc": include("server/engine/engine.h")}, {})


def test_an_exception_allows_one_file_and_must_be_needed():
    exceptions = {("client/cli/import.cc", "server/recording"): "why"}
    source = include("server/recording/catalog.h")
    assert layers.check_arrows({"client/cli/import.cc": source}, exceptions) == []
    assert layers.check_arrows({"client/cli/import.cc": source, "client/cli/read.cc": source}, exceptions)
    assert layers.check_arrows({}, exceptions)


def test_refuses_circles_between_folders():
    sources = {
        "server/model/a/a.h": include("server/model/b/b.h"),
        "server/model/b/b.h": include("server/model/c/c.h"),
        "server/model/c/c.h": include("server/model/a/other.h"),
    }
    assert layers.check_circles(sources) == [
        "folders include each other in a circle: server/model/a -> server/model/b -> server/model/c -> server/model/a"
    ]
    del sources["server/model/c/c.h"]
    assert layers.check_circles(sources) == []


def test_the_planner_is_called_once():
    declared = "absl::StatusOr<CapturePlan> MakeCapturePlan(CaptureRequest request);\n"
    called = "  return MakeCapturePlan(std::move(request));  // as MakeCapturePlan(x) says\n"
    sources = {"server/capture/plan.h": declared, "server/engine/engine.cc": called}
    assert layers.check_planner(sources) == []
    assert layers.check_planner({**sources, "server/recorder/recorder.cc": called})
    assert layers.check_planner({"server/capture/plan.h": declared})


def test_friends_are_of_the_same_file():
    friend = "class A {\n  friend class B;\n};\n"
    assert layers.check_friends({"server/base/a.h": friend})
    assert layers.check_friends({"server/base/a.h": "class B;\n" + friend})
    assert layers.check_friends({"server/base/a.h": friend + "class B {\n};\n"}) == []
    assert layers.check_friends({"server/base/a.h": friend, "server/base/a.cc": "class B {\n};\n"}) == []
