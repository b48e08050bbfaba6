"""What a drill measured, what was allowed, and the verdict. Pure.

A *stall* is the longest time without an acknowledgement, of reads and of writes apart. *Recovery* is the time
from the end of the fault (from the fault itself where it has no end) until the redundancy is whole again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from moorage.cli import output
from moorage.cli.report import Promise
from moorage.service.exits import Exit


@dataclass(frozen=True)
class Budget:
    max_stall_s: float = 1.0
    max_recovery_s: float = 60.0


@dataclass
class Outcome:
    """Of one drill. ``skipped``: why it cannot be done here, or ""; what was not measured is None."""

    drill: str
    budget: Budget
    host: str = ""
    skipped: str = ""
    error: str = ""
    read_stall_ms: float | None = None
    write_stall_ms: float | None = None
    recovery_s: float | None = None
    checked_blocks: int = 0
    promises: list[Promise] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.error and not self.skipped and all(promise.kept for promise in self.promises)

    @property
    def missed(self) -> list[Promise]:
        return [promise for promise in self.promises if not promise.kept]

    def stalls(self, phases: Sequence[dict[str, Any]]) -> None:
        """Take the longest gaps of these phases."""
        self.read_stall_ms = max((phase["read_gap_ms"] for phase in phases), default=None)
        self.write_stall_ms = max((phase["write_gap_ms"] for phase in phases), default=None)

    def verdicts(self) -> list[Promise]:
        """The budget against what was measured."""
        found = []
        for what, stall in (("reads", self.read_stall_ms), ("writes", self.write_stall_ms)):
            if stall is not None:
                kept = stall <= self.budget.max_stall_s * 1e3
                text = f"no stall of {what} beyond {self.budget.max_stall_s:g} s"
                found.append(Promise(text, kept, f"{stall:.0f} ms", budget=True))
        if self.recovery_s is not None:
            kept = self.recovery_s <= self.budget.max_recovery_s
            text = f"recovered within {self.budget.max_recovery_s:g} s"
            found.append(Promise(text, kept, f"{self.recovery_s:.1f} s", budget=True))
        return found

    def exit(self) -> Exit:
        """A promise that was broken is our mistake; a budget that was missed may be met another time."""
        if any(not promise.budget for promise in self.missed):
            return Exit.INTERNAL
        return Exit.UNAVAILABLE if self.error or self.missed else Exit.OK

    def document(self) -> dict[str, Any]:
        return {
            "drill": self.drill,
            "host": self.host,
            "passed": self.passed,
            "skipped": self.skipped,
            "error": self.error,
            "read_stall_ms": self.read_stall_ms,
            "write_stall_ms": self.write_stall_ms,
            "recovery_s": None if self.recovery_s is None else round(self.recovery_s, 3),
            "checked_blocks": self.checked_blocks,
            "budget": vars(self.budget),
            "promises": [vars(promise) for promise in self.promises],
            "phases": self.phases,
        }


def worst(outcomes: Sequence[Outcome]) -> Exit:
    """Skipped drills say nothing, unless nothing else was done."""
    if outcomes and all(outcome.skipped for outcome in outcomes):
        return Exit.CONFIGURATION
    codes = [outcome.exit() for outcome in outcomes]
    return Exit.INTERNAL if Exit.INTERNAL in codes else max(codes, default=Exit.OK)


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "schema": "moorage.drill/1",
        "passed": worst(outcomes) == Exit.OK,
        "drills": [outcome.document() for outcome in outcomes],
    }


def table(outcomes: Sequence[Outcome]) -> Table:
    columns = ("drill", "host", "verdict", "reads", "writes", "recovery", "blocks")
    made = output.table("Drills", columns, [_row(outcome) for outcome in outcomes])
    made.caption = "longest stall of reads and of writes; time to full redundancy; blocks checked"
    made.caption_justify = "left"
    return made


def _row(outcome: Outcome) -> tuple[object, ...]:
    return (
        outcome.drill,
        outcome.host,
        _verdict(outcome),
        _milliseconds(outcome.read_stall_ms),
        _milliseconds(outcome.write_stall_ms),
        "-" if outcome.recovery_s is None else f"{outcome.recovery_s:.1f} s",
        f"{outcome.checked_blocks:,}",
    )


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each drill that was not passed."""
    lines = []
    for outcome in outcomes:
        missed = "; ".join(f"{each.what}: {each.figure or 'no'}" for each in outcome.missed)
        if why := outcome.skipped or outcome.error or missed:
            lines.append(f"{outcome.drill}: {why}")
    return lines


def _verdict(outcome: Outcome) -> Text:
    if outcome.skipped:
        return Text("skipped", style="yellow")
    return Text("pass", style="green") if outcome.passed else Text("FAIL", style="bold red")


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
