"""What the demo and the drills say: one line a step as they go, and a table of promises at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

GAP_AIM_MS = 100.0


@dataclass
class Promise:
    what: str
    kept: bool
    figure: str
    budget: bool = False  # a time that was allowed, not a promise of Moorage's


@dataclass
class Report:
    """Promises decide the exit code; figures inform."""

    console: Console
    promises: list[Promise] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    _status: Status | None = None

    def progress(self, text: str) -> None:
        """What is waited for now, on a line that changes; only where a person looks on."""
        if self._status is None:
            self._status = self.console.status("")
            self._status.start()
        self._status.update(escape(text))

    def quiet(self) -> None:
        """Nothing is waited for any more."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def step(self, text: str) -> None:
        self.console.print(f"[bold]›[/bold] {escape(text)}")

    def promise(self, what: str, kept: bool, figure: str = "", *, budget: bool = False) -> None:
        self.promises.append(Promise(what, kept, figure, budget))
        mark = "[green]✓[/green]" if kept else "[red]✗[/red]"
        self.console.print(f"  {mark} {escape(what)}" + (f" [dim]({escape(figure)})[/dim]" if figure else ""))

    def phase(self, figures: dict[str, Any]) -> None:
        self.phases.append(figures)
        self.console.print(
            f"  [dim]{figures['phase']}: {figures['reads_per_s']:,.0f} reads/s, "
            f"{figures['writes_per_s']:,.0f} writes/s, longest gap "
            f"{figures['read_gap_ms']:.0f} / {figures['write_gap_ms']:.0f} ms, "
            f"{figures['errors']} errors[/dim]"
        )

    @property
    def kept(self) -> bool:
        return all(promise.kept for promise in self.promises)

    def print(self) -> None:
        self.console.print()
        if self.phases:
            self.console.print(self._phase_table())
        self.console.print(self._promise_table())
        verdict = "[bold green]Every promise was kept." if self.kept else "[bold red]A promise was broken."
        self.console.print(verdict)

    def _phase_table(self) -> Table:
        table = Table(title="4 KiB random reads and writes while hosts die", title_justify="left")
        for column in ("phase", "seconds", "reads/s", "writes/s", "gap, reads", "gap, writes", "errors"):
            table.add_column(column, justify="left" if column == "phase" else "right")
        for phase in self.phases:
            table.add_row(
                phase["phase"],
                f"{phase['seconds']:.1f}",
                f"{phase['reads_per_s']:,.0f}",
                f"{phase['writes_per_s']:,.0f}",
                _gap(phase["read_gap_ms"]),
                _gap(phase["write_gap_ms"]),
                str(phase["errors"]),
            )
        table.caption = f"gap: the longest time without an acknowledgement; aim: under {GAP_AIM_MS:.0f} ms"
        return table

    def _promise_table(self) -> Table:
        table = Table(title="Promises", title_justify="left")
        for column in ("promise", "kept", "figure"):
            table.add_column(column)
        for promise in self.promises:
            mark = "[green]yes[/green]" if promise.kept else "[bold red]NO[/bold red]"
            table.add_row(escape(promise.what), mark, escape(promise.figure))
        return table

    def document(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "promises": [vars(promise) for promise in self.promises],
            "phases": self.phases,
        }


def _gap(milliseconds: float) -> str:
    colour = "green" if milliseconds < GAP_AIM_MS else "yellow"
    return f"[{colour}]{milliseconds:.0f} ms[/{colour}]"
