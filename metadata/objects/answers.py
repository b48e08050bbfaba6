"""Commands about objects that may come again: what each was answered with, kept in the replicated state.

A client that does not know the outcome of a command sends it again under the same id. A put is known by its
object's id; of what has no such mark the answer is kept, for the last commands of the log: applied twice, it
could take away what somebody else has put since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moorage.metadata import limits
from moorage.metadata.objects import layout
from moorage.service.kv import KV
from moorage.wire.errors import Invalid

Do = Callable[[KV, dict[str, Any], int], Any]


def once(do: Do) -> Do:
    """``do``, for commands with a ``request``: one that was applied before is answered as it was then. One
    that was refused changed nothing, and is judged anew. (What older members have put into the log has none.)
    """

    def command(kv: KV, command: dict[str, Any], index: int) -> Any:
        if "request" not in command:
            return do(kv, command, index)
        bucket, kind = command["bucket"], command["do"]
        key = layout.answer_key(bucket, limits.check_request(command["request"]))
        if (found := kv.get(key)) is not None:
            if found["do"] != kind:
                raise Invalid(f"request id {command['request']} was used for {found['do']}")
            return found["answer"]
        answer = do(kv, command, index)
        kv.put(key, {"do": kind, "answer": answer})
        slot = layout.answer_slot_key(bucket, index % limits.ANSWERS_KEPT)
        if (older := kv.get(slot)) is not None:
            kv.delete(layout.answer_key(bucket, older))
        kv.put(slot, command["request"])
        return answer

    return command
