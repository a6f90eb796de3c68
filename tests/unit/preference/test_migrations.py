"""The tables' history: old databases are brought up to date, and the newest tables are what the program says."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from services.preference import migrating
from services.preference.database import open_engine
from services.preference.migrating import HEAD, migrate
from services.preference.store import PreferenceStore
from services.preference.tables import Table
from tests.unit.preference.builders import answer

# Schema 1 as it was written by the program from before the migrations, with one answer in it.
_OLD = """
CREATE TABLE schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE items (item_id VARCHAR(200) NOT NULL, campaign VARCHAR(200) NOT NULL, prompt_id VARCHAR(200) NOT NULL,
  prompt JSON NOT NULL, PRIMARY KEY (item_id));
CREATE TABLE candidates (item_id VARCHAR(200) NOT NULL, candidate_id VARCHAR(200) NOT NULL, position INTEGER NOT NULL,
  text TEXT NOT NULL, source VARCHAR(200) NOT NULL, version_epoch BIGINT, version_step BIGINT,
  version_digest VARCHAR(200), PRIMARY KEY (item_id, candidate_id), FOREIGN KEY(item_id) REFERENCES items (item_id));
CREATE TABLE tasks (task_id VARCHAR(200) NOT NULL, item_id VARCHAR(200) NOT NULL, campaign VARCHAR(200) NOT NULL,
  first_candidate_id VARCHAR(200) NOT NULL, second_candidate_id VARCHAR(200) NOT NULL, order_key BIGINT NOT NULL,
  answered BOOLEAN NOT NULL, lease_holder VARCHAR(200) NOT NULL, lease_until FLOAT NOT NULL, PRIMARY KEY (task_id),
  FOREIGN KEY(item_id) REFERENCES items (item_id));
CREATE TABLE annotators (name VARCHAR(200) NOT NULL, rule TEXT NOT NULL, rule_digest VARCHAR(200) NOT NULL,
  first_seen FLOAT NOT NULL, PRIMARY KEY (name));
CREATE TABLE comparisons (sequence INTEGER NOT NULL, task_id VARCHAR(200) NOT NULL, item_id VARCHAR(200) NOT NULL,
  campaign VARCHAR(200) NOT NULL, annotator VARCHAR(200) NOT NULL, first_candidate_id VARCHAR(200) NOT NULL,
  second_candidate_id VARCHAR(200) NOT NULL, choice VARCHAR(8) NOT NULL, confidence FLOAT, comment TEXT NOT NULL,
  recorded_at FLOAT NOT NULL, PRIMARY KEY (sequence),
  FOREIGN KEY(item_id, first_candidate_id) REFERENCES candidates (item_id, candidate_id),
  FOREIGN KEY(item_id, second_candidate_id) REFERENCES candidates (item_id, candidate_id), UNIQUE (task_id),
  FOREIGN KEY(task_id) REFERENCES tasks (task_id), FOREIGN KEY(item_id) REFERENCES items (item_id),
  FOREIGN KEY(annotator) REFERENCES annotators (name));
CREATE INDEX ix_items_campaign ON items (campaign);
CREATE INDEX tasks_held ON tasks (lease_holder);
CREATE INDEX tasks_open ON tasks (answered, order_key);
CREATE INDEX tasks_open_of_campaign ON tasks (campaign, answered, order_key);
CREATE INDEX ix_tasks_item_id ON tasks (item_id);
CREATE INDEX comparisons_by_time ON comparisons (recorded_at, sequence);
CREATE INDEX comparisons_of_campaign ON comparisons (campaign, recorded_at, sequence);
CREATE INDEX ix_comparisons_item_id ON comparisons (item_id);
CREATE INDEX ix_comparisons_annotator ON comparisons (annotator);
INSERT INTO schema VALUES (1);
INSERT INTO items VALUES ('i', 'c', 'p', '[{"role": "user", "content": "why?"}]');
INSERT INTO candidates VALUES ('i', 'a', 0, 'so', 's', NULL, NULL, NULL), ('i', 'b', 1, 'no', 't', NULL, NULL, NULL),
  ('i', 'd', 2, 'hm', 't', NULL, NULL, NULL);
INSERT INTO tasks VALUES ('t1', 'i', 'c', 'a', 'b', 7, 1, '', 0.0), ('t2', 'i', 'c', 'a', 'd', 8, 0, '', 0.0),
  ('t3', 'i', 'c', 'b', 'd', 9, 0, '', 0.0);
INSERT INTO annotators VALUES ('ann', '', '', 5.0);
INSERT INTO comparisons VALUES (1, 't1', 'i', 'c', 'ann', 'a', 'b', 'first', 0.5, 'hm', 6.0);
"""


def test_a_database_from_before_the_migrations_goes_on(tmp_path: Path) -> None:
    """Its answer is there as it was, an answered task stays answered, an open one can be answered."""
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(_OLD)
    connection.close()
    for _ in range(2):  # the second time there is nothing to do
        store = PreferenceStore(f"sqlite:///{path}")
        [(old, item)] = store.page(items=True).rows
        assert (old.task_id, old.annotator, old.confidence, old.comment, old.recorded_at, old.revision) == (
            *("t1", "ann", 0.5, "hm", 6.0),
            0,
        )
        assert item is not None
        assert [candidate.text for candidate in item.candidates] == ["so", "no", "hm"]
        assert store.statistics().tasks_open == 2
        store.close()
    store = PreferenceStore(f"sqlite:///{path}")
    tasks = store.next_tasks("bob", limit=5)
    assert store.record([answer(task, "bob") for task in tasks]) == 2
    assert store.record([answer(tasks[0], "bob")]) == 0
    store.close()


def test_the_migrations_make_the_tables_of_the_program(database_url: str) -> None:
    """Alembic finds no difference between tables.py and what the migrations make, on either database."""
    engine = open_engine(database_url)
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_name": lambda name, kind, _: not (kind == "table" and name == "schema"),
                "compare_type": engine.dialect.name == "postgresql",  # SQLite knows hardly any types
            },
        )
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


def test_the_newest_migration_is_known_without_alembic() -> None:
    """HEAD, which spares the import of Alembic at every start, is the newest file."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrating.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
