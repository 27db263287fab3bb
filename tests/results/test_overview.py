from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from moesearch.errors import StoreError
from moesearch.results.overview import read_overview
from tests.search.stand_ins import begin, study_config, url_of


@pytest.mark.parametrize(
    "damage",
    ["UPDATE study_system_attributes SET value_json = '{\"na'", "UPDATE study_system_attributes SET value_json = '{}'"],
)
def test_a_store_with_torn_records_is_refused_in_words(damage: str, tmp_path: Path) -> None:
    begin(study_config(), tmp_path)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database, database:
        database.execute(damage)
    with pytest.raises(StoreError, match=r"optuna\.db: is damaged, or not of moesearch"):
        read_overview(url_of(tmp_path))
