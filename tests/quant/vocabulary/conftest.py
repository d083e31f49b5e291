from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from trained_tokenizers import trained_tokenizer, write_tokenizer_files

from vlpress.quant.vocabulary.byte_pairs import BytePairs


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    return trained_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_folder(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(folder, trained)
    return folder


@pytest.fixture(scope="session")
def byte_pairs(tokenizer_folder: Path) -> BytePairs:
    return BytePairs.from_folder(tokenizer_folder)
