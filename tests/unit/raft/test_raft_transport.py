"""Who is heard under a name: pins, and since when a member is one."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.quorum.raft_types import Append, HeartbeatReply, Message, encode
from moorage.service.raft_storage import Life, Pin
from moorage.service.raft_transport import STRANGERS_MAX, Transport
from moorage.wire import errors, frame
from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret

REPLY = encode(HeartbeatReply(1, 1))
APPEND = encode(Append(1, 0, 0, 0, 0, ()))


class Conn:
    """What the transport uses of a connection; ``told`` are the messages sent on it."""

    def __init__(self, process: str = "p") -> None:
        self.peer = Hello("registry", "00" * 8, "host", process)
        self.address = "h:1"
        self.closed = False
        self.write_queue_size = 0
        self.told: list[list[Any]] = []

    def send(self, kind: int, op: int, request_id: int, body: Any) -> None:
        self.told.append(frame.unpack(body))

    def request(self, *arguments: object) -> None:
        pass


class Core:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.reasons: list[str] = []

    def received(self, source: str, message: Message) -> None:
        self.heard.append(source)

    def accepted(self) -> None:
        self.heard.append("accepted")

    def refused(self, by: str, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def transport(core: Core) -> Transport:
    """Member a of a, b, c, with b pinned since the beginning."""
    secret = ClusterSecret("00" * 8, b"k" * 32)
    made = Transport(
        group="g", name="a", hello=Hello("registry", secret.cluster, "a", "i"), secret=secret, receiver=core
    )
    made.instance = "A"
    made.members_are({"a": 0, "b": 0, "c": 0}, 0)
    made.channels = dict.fromkeys(("b", "c"))  # type: ignore[assignment, arg-type]
    made.pins["b"] = Pin(0, "B")
    return made


def hear(transport: Transport, name: str, instance: str, since: int | None, raw: Any = None) -> list[Any]:
    """One frame on a connection of its own; what is answered to it there."""
    conn: Any = Conn(instance)
    transport.received(conn, name, instance, since, None, raw or REPLY)
    return [message for *_, message in conn.told]


def test_another_instance_of_the_same_membership_is_refused(transport: Transport, core: Core) -> None:
    [[kind, reason]] = hear(transport, "b", "wiped", 0)
    assert kind == "refused" and "instance B, not wiped" in reason
    assert hear(transport, "b", "wiped", None, ["birth", 1, "t", ""])[0][0] == "refused"
    assert core.heard == [] and transport.pins["b"] == Pin(0, "B")


def test_who_was_added_later_replaces_who_had_the_name_before(transport: Transport, core: Core) -> None:
    assert hear(transport, "b", "new", 57) == []
    assert transport.new_pins == {"b": Pin(57, "new")} and core.heard == ["b"]
    assert hear(transport, "b", "B", 0) == [] and hear(transport, "b", "B", None) == []
    assert core.heard == ["b"]


def test_who_does_not_know_yet_since_when_it_is_a_member_is_not_refused(
    transport: Transport, core: Core
) -> None:
    """The one that asks it may be a peer that was away, and knows the former member only."""
    assert hear(transport, "b", "new", None) == [] and core.heard == []


def test_a_snapshot_over_a_removal_and_an_addition_frees_the_name(transport: Transport, core: Core) -> None:
    transport.members_are({"a": 0, "b": 57, "c": 0}, 80)
    assert transport.new_pins == {"b": None}
    assert hear(transport, "b", "B", 0) == [] and core.heard == []  # what the former one had still sent
    assert hear(transport, "b", "new", None) == []
    assert transport.pins["b"] == Pin(57, "new") and core.heard == ["b"]
    assert hear(transport, "b", "wiped", 57)[0][0] == "refused"


def test_the_log_of_the_past_does_not_forget_who_came_later(transport: Transport) -> None:
    hear(transport, "b", "new", 57)
    transport.members_are({"a": 0, "c": 0}, 50)  # the removal
    transport.members_are({"a": 0, "b": 57, "c": 0}, 57)
    assert transport.pins["b"] == Pin(57, "new")


def test_a_member_that_starts_as_if_it_began_the_group_is_told(transport: Transport) -> None:
    transport.members_are({"a": 0, "b": 57, "c": 0}, 80)
    [[kind, reason]] = hear(transport, "b", "new", None, ["birth", 1, "t", ""])
    assert kind == "refused" and "one that joins" in reason


def test_strangers_are_heard_only_when_they_came_later_and_only_some(
    transport: Transport, core: Core
) -> None:
    transport.members_are({"a": 0, "b": 0}, 40)
    del transport.channels["c"]
    for since in (None, 0, 40):
        hear(transport, "c", "C", since)
    hear(transport, "x" * 600, "X", 41)
    assert core.heard == [] and list(transport.pins) == ["b"]
    for number in range(STRANGERS_MAX + 5):
        hear(transport, f"d{number}", "D", 41)
    assert len(core.heard) == STRANGERS_MAX
    transport.members_are({"a": 0, "b": 0}, 42)
    assert list(transport.pins) == ["b"]


def test_a_stranger_is_answered_where_it_spoke(transport: Transport) -> None:
    conn: Any = Conn()
    transport.received(conn, "d", "D", 41, None, REPLY)
    transport.send("d", HeartbeatReply(1, 1))
    assert conn.told == [["g", "a", "A", None, None, REPLY]]


def test_a_member_learns_from_a_leader_since_when_it_is_one(transport: Transport) -> None:
    conn: Any = Conn()
    transport.received(conn, "b", "B", 0, 9, REPLY)  # not what a leader says
    assert "a" not in transport.new_pins
    transport.received(conn, "b", "B", 0, 9, APPEND)
    transport.received(conn, "b", "B", 0, 5, APPEND)
    assert transport.new_pins["a"] == Pin(9, "A") and transport.pins["b"] == Pin(0, "B")
    transport._send_on(conn, "b", REPLY)
    assert conn.told == [["g", "a", "A", 9, 0, REPLY]]


def test_a_life_follows_from_the_one_before_it_or_is_refused(transport: Transport, core: Core) -> None:
    def start(number: int, token: str, former: str) -> bool:
        """Whether the life was taken: it is answered when the pin is durable."""
        answers = hear(transport, "b", "B", 0, ["start", number, token, former])
        return [answer[0] for answer in answers] != ["refused"]

    assert start(1, "one", "")
    assert start(2, "two", "one")
    assert start(2, "two", "one")  # asked again
    assert start(5, "five", "four")  # we were away during two lives
    assert transport.pins["b"] == Pin(0, "B", 5, "five")
    assert not start(5, "other five", "four")  # both come from a copy of life 4
    assert not start(6, "six", "other five")
    assert not start(2, "other two", "one")  # restored from a backup of life 1
    assert transport.pins["b"] == Pin(0, "B", 5, "five")
    assert start(6, "six", "five")


def test_a_life_is_accepted_when_the_pin_is_durable(transport: Transport) -> None:
    channel: Any = type("Channel", (), {"conn": Conn()})()
    transport.channels["b"] = channel
    hear(transport, "b", "B", 0, ["start", 1, "one", ""])
    assert channel.conn.told == []
    transport.pins_stored(dict(transport.new_pins))
    assert [message for *_, message in channel.conn.told] == [["accepted", "one"]]


def test_only_this_life_is_accepted_by_an_answer_to_it(transport: Transport, core: Core) -> None:
    transport.life = Life(2, "two", "one", False)
    hear(transport, "b", "B", 0, ["accepted", "one"])
    assert transport.accepted_by == set() and core.heard == []
    hear(transport, "b", "B", 0, ["accepted", "two"])
    assert transport.accepted_by == {"b"} and core.heard == ["accepted"]
    hear(transport, "b", "new", 57)
    assert transport.accepted_by == set()  # the new member of that name has not heard of us


@pytest.mark.parametrize("message", [5, [], ["nonsense"], [1, 2], [99], ["birth"], ["start", "1", "t", ""]])
def test_garbage_is_a_protocol_error(transport: Transport, message: Any) -> None:
    with pytest.raises(errors.ProtocolError):
        transport.received(Conn(), "b", "B", 0, 0, message)  # type: ignore[arg-type]
