"""A preference service with a database in a folder, items, and people who may sign in: for two surfaces."""

from __future__ import annotations

import time
from pathlib import Path

from services.preference import accounts
from services.preference.accounts import Person
from services.preference.config import PreferenceConfig
from services.preference.database import Database
from trimtab.common.v1 import common_pb2 as common
from trimtab.preference.v1 import preference_pb2 as wire

ITEMS = 4


def config(folder: Path, **more: object) -> PreferenceConfig:
    """Ratings of few resamples; nobody is held up for asking often."""
    return PreferenceConfig.model_validate(
        {
            "database_url": f"sqlite:///{folder / 'preference.db'}",
            "rating": {"permutations": 1, "bootstrap_samples": 20},
            "web": {"requests_per_minute": 10**9, "sign_ins_per_minute": 10**9},
            **more,
        }
    )


def item(number: int = 0) -> wire.Item:
    """Three candidates, each with what may be said of one."""
    return wire.Item(
        item_id=f"item{number}",
        prompt=[common.ChatMessage(role="user", content="How are you?")],
        candidates=[
            wire.Candidate(
                candidate_id=name,
                text=f"answer {name}",
                source=f"policy@{name}",
                version=common.WeightsVersion(epoch=1, step=2, digest="ab"),
            )
            for name in "abc"
        ],
        campaign="fuzz" if number % 2 else "",
        prompt_id=f"p{number}",
    )


def invited(settings: PreferenceConfig) -> dict[str, str]:
    """The tokens of an owner and an annotator."""
    database = Database(settings.database_url.get_secret_value())
    people = [Person(name="owner", role="owner"), Person(name="ann", role="annotator")]
    try:
        return {
            person.name: database.transaction(
                lambda session, person=person: accounts.new_person(session, person, now=time.time())
            )
            for person in people
        }
    finally:
        database.close()
