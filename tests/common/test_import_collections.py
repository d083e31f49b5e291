from __future__ import annotations

import gc

import pytest

from vlpress.common.imports import without_collections


def test_collections_stop_in_the_body_and_go_on_after_it() -> None:
    with without_collections(), without_collections():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), without_collections():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
