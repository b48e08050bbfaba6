"""How a holder carries a change of members out, whatever order metadata's answers come in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.client import membership
from moorage.client.membership import Membership
from moorage.wire.errors import Fenced, MoorageError, NotLeader, StaleConfiguration

WISH = {"replica": 4, "device": "d4", "host": "h4", "replaces": 2, "why": "drain", "since_ms": 0}
OTHER_WISH = {**WISH, "replica": 5, "device": "d5", "host": "h5"}


def group_of(version: int, members: tuple[int, ...], wish: dict[str, Any] | None = None) -> dict[str, Any]:
    rows = [{"replica": each, "device": f"d{each}", "host": f"h{each}"} for each in members]
    return {"group": 0, "version": version, "members": rows, "wish": wish}


OLD = group_of(1, (1, 2, 3))
WISHED = group_of(1, (1, 2, 3), WISH)
NEW = group_of(2, (1, 4, 3))


class Session:
    """Of a group, as the membership sees it; notes what it is told. Metadata answers from ``answers``."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.asked: list[str] = []
        self.answers: list[Any] = []
        self.index, self.epoch, self.failed, self.paused = 0, 7, None, ""
        self.writer = SimpleNamespace(
            change=self._note("change"),
            change_committed=self._note("committed"),
            change_refused=self._note("refused"),
        )
        self.tasks: set[asyncio.Task[None]] = set()
        self.shared = SimpleNamespace(
            name="db", volume=9, ask=self._ask, spawn=self._spawn, suspect=self._note("suspect")
        )
        self.membership = Membership(self, OLD)  # type: ignore[arg-type]

    def _note(self, what: str) -> Callable[[Any], None]:
        return lambda about: self.told.append((what, about))

    def add(self, row: dict[str, Any]) -> None:
        self.told.append(("add", row["replica"]))

    def keep(self, replicas: list[int]) -> None:
        self.told.append(("keep", tuple(replicas)))

    def kick(self) -> None:
        pass

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _ask(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        self.asked.append(method.removeprefix("metadata."))
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, MoorageError):
            raise answer
        return {"id": 9, "groups": [answer]} if method == "metadata.show_volume" else answer

    async def idle(self) -> None:
        while self.tasks:
            await asyncio.gather(*self.tasks)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "RETRY_S", 0)


BEGUN = [("change", (1, 4, 3)), ("add", 4)]
COMMITTED = [("committed", (1, 4, 3)), ("keep", (1, 4, 3))]
REFUSED = [("refused", (1, 4, 3)), ("keep", (1, 2, 3))]


@pytest.fixture
async def session() -> Session:
    made = Session()
    made.membership.heard(OLD)
    made.membership.heard(WISHED)
    made.membership.heard(WISHED)
    assert made.told == BEGUN and made.membership.learner == 4
    return made


async def test_metadata_commits_what_both_have(session: Session) -> None:
    session.answers = [NEW]
    session.membership.ready()
    await session.idle()
    assert session.asked == ["reconfigure"] and session.told == BEGUN + COMMITTED
    session.membership.heard(WISHED)  # by a leader that was deposed
    session.membership.heard(NEW)
    assert session.told == BEGUN + COMMITTED and session.membership.learner == 0


async def test_an_answer_that_was_lost_is_asked_for_again(session: Session) -> None:
    session.answers = [NotLeader("gone"), NotLeader("gone"), NEW]
    session.membership.ready()
    await session.idle()
    assert session.asked == ["reconfigure"] * 3 and session.told == BEGUN + COMMITTED


async def test_a_renewal_may_bring_the_answer(session: Session) -> None:
    session.answers = [NotLeader("gone"), NEW]
    session.membership.ready()
    session.membership.heard(NEW)
    await session.idle()
    assert session.told == BEGUN + COMMITTED


async def test_one_stale_renewal_ends_no_change(session: Session) -> None:
    """A leader that was deposed before the wish: by its word alone the old members would count again, while
    metadata has committed the new ones."""
    session.answers = [WISHED]
    session.membership.heard(OLD)
    await session.idle()
    assert session.asked == ["show_volume"] and session.told == BEGUN
    session.answers = [NEW]
    session.membership.heard(OLD)
    await session.idle()
    assert session.told == BEGUN + COMMITTED


async def test_what_was_called_off_is_refused(session: Session) -> None:
    session.answers = [OLD]
    session.membership.heard(OLD)
    await session.idle()
    assert session.told == BEGUN + REFUSED and session.membership.learner == 0
    session.membership.heard(group_of(1, (1, 2, 3), OTHER_WISH))
    assert session.told[-2:] == [("change", (1, 5, 3)), ("add", 5)]


async def test_called_off_while_it_was_being_committed(session: Session) -> None:
    session.answers = [StaleConfiguration("no such plan"), group_of(1, (1, 2, 3), OTHER_WISH)]
    session.membership.ready()
    await session.idle()
    assert session.asked == ["reconfigure", "show_volume"] and session.told == BEGUN + REFUSED


async def test_it_still_is_wished_for_and_is_committed_later(session: Session) -> None:
    session.answers = [StaleConfiguration("look again"), WISHED, NEW]
    session.membership.ready()
    await session.idle()
    assert session.asked == ["reconfigure", "show_volume", "reconfigure"]
    assert session.told == BEGUN + COMMITTED


async def test_an_epoch_that_is_over_ends_its_questions(session: Session) -> None:
    """The attachment goes on in another one: what metadata says of the former one is not about it."""
    session.answers = [NotLeader("gone"), Fenced("taken over"), NEW]
    session.membership.ready()
    await asyncio.sleep(0)
    session.membership = Membership(session, OLD)  # type: ignore[arg-type]
    await session.idle()
    assert session.told == BEGUN and session.membership.learner == 0
    session.membership.heard(WISHED)
    assert session.told == BEGUN + BEGUN


async def test_members_that_nobody_asked_for_end_the_attachment(session: Session) -> None:
    session.membership.heard(group_of(2, (1, 8, 3)))
    assert [what for what, _ in session.told] == ["change", "add", "suspect"]


async def test_another_volume_has_the_name(session: Session) -> None:
    session.shared.volume = 10
    session.answers = [OLD]
    session.membership.heard(OLD)
    await session.idle()
    (*_, (what, error)) = session.told
    assert what == "suspect" and isinstance(error, Fenced)
