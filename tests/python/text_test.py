"""Tests that a server's bytes are shown as escapes."""

import pickle

import grpc
import pytest

import hookline
from hookline import _text
from hookline.errors import from_rpc_error, make_error
from hookline.model import RemoteModel
from hookline.types import ModelInfo

EVIL = "m\x1b[31m\nforged\r\x7f\x9b2J\u202e"
SHOWN = "m\\x1b[31m\\nforged\\r\\x7f\\xc2\\x9b2J\\xe2\\x80\\xae"


def test_hidden_characters_become_escapes_and_the_rest_stays():
    assert _text.escaped(EVIL) == SHOWN
    assert _text.escaped(SHOWN) == SHOWN
    assert _text.escaped("blocks.0 é € \U0001f600 \\x1b") == "blocks.0 é € \U0001f600 \\x1b"
    assert _text.escaped(b"a\xff\xc3".decode("utf-8", "surrogateescape")) == "a\\xff\\xc3"
    assert (
        _text.escaped("\ud800\u2028\u2066\ufeff\u061c\0")
        == "\\xed\\xa0\\x80\\xe2\\x80\\xa8\\xe2\\x81\\xa6\\xef\\xbb\\xbf\\xd8\\x9c\\x00"
    )
    for point in range(0x3000):
        once = _text.escaped(chr(point))
        assert _text.escaped(once) == once and (once.isprintable() or point not in range(0xA0))


@pytest.mark.parametrize("code", ["INTERNAL", "INVALID_ARGUMENT", "DATA_LOSS", "CANCELLED"])
def test_every_error_of_a_server_is_shown_escaped(code):
    error = make_error(code, EVIL, field=EVIL)
    for shown in (error, pickle.loads(pickle.dumps(error))):
        assert str(shown) == f"{code}: {SHOWN}" and shown.message == SHOWN and shown.field == SHOWN
        assert EVIL not in repr(shown) and shown.args == (SHOWN,)


def test_an_rpc_error_is_shown_escaped():
    class Refused(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.INTERNAL

        def details(self):
            return EVIL

        def trailing_metadata(self):
            return ()

    assert from_rpc_error(Refused()).message == SHOWN
    assert hookline.HooklineError(EVIL).message == SHOWN


def test_a_model_is_shown_escaped():
    fields = {name: EVIL for name, kind in ModelInfo.__annotations__.items() if kind == "str"}
    numbers = {name: 0 for name in ModelInfo.__annotations__ if name not in fields}
    client = type("Client", (), {"address": "localhost:1"})()
    text = repr(RemoteModel(client, ModelInfo(**{**numbers, **fields})))
    assert "\x1b" not in text and "\n" not in text and "\u202e" not in text and SHOWN in text
