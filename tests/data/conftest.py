from __future__ import annotations

from pathlib import Path

import pytest

from moesearch.config.trial import DataConfig
from moesearch.data.corpora import Corpus, load_corpus


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the plays."""
    folder = tmp_path_factory.mktemp("cache")
    load_corpus(DataConfig(), folder)
    return folder


@pytest.fixture(scope="session")
def shakespeare(cache: Path) -> Corpus:
    return load_corpus(DataConfig(), cache)
