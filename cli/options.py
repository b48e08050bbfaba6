"""Options that all client commands share, and the way from a command to the event loop.

Owns the look-up of the cluster from options and environment (the rules are moorage.client.config's), the
deadline of a command, and the exit code of an error. A command body is a coroutine that gets a cluster.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from moorage.cli import output
from moorage.client.cluster import Cluster
from moorage.service.exits import exit_code
from moorage.wire.errors import DeadlineExceeded, Invalid, MoorageError

P = ParamSpec("P")
GRACE_S = 1.0


class SizeType(click.ParamType[int]):
    """A size such as 4096, 512M, 10GiB; units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from moorage.client.uri import parse_size

        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except Invalid as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()


class Seconds(click.FloatRange):
    """A range of seconds; nan is in every range for click, and no deadline."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


_CONNECTION_OPTIONS = [
    click.option("--cluster", help="Configured name, SRV name or host:port of the cluster."),
    click.option("--registry", help="host:port,... or srv:NAME of the registries [env: MOORAGE_REGISTRY]."),
    click.option("--secret-file", help="File with the cluster's secret [env: MOORAGE_SECRET_FILE]."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables."),
]
_TIMEOUT = click.option("--timeout", type=Seconds(min=0.1), default=30.0, show_default=True, help="Seconds.")
Callback = TypeVar("Callback", bound=Callable[..., None])


def connection_options(command: Callback) -> Callback:
    """--cluster, --registry, --secret-file and --json."""
    for option in reversed(_CONNECTION_OPTIONS):
        command = option(command)
    return command


def cluster_of(cluster: str | None, registry: str | None, volumes: Iterable[object]) -> str | None:
    """What ``--cluster`` says, or else the cluster that one of the arguments names: moorage://prod/db."""
    from moorage.client import uri

    if cluster or registry:
        return cluster
    for text in volumes:
        if isinstance(text, str) and text.startswith(uri.SCHEME):
            with contextlib.suppress(Invalid):  # what is wrong with it is told where it is used
                if named := uri.parse(text).cluster:
                    return named
    return None


def cluster_command(
    body: Callable[Concatenate[Cluster, bool, P], Coroutine[Any, Any, None]],
) -> Callable[..., None]:
    """Make a click callback of ``async def body(cluster, as_json, ...)`` that ends within ``--timeout``."""

    @functools.wraps(body)
    def command(
        cluster: str | None,
        registry: str | None,
        secret_file: str | None,
        timeout: float,
        as_json: bool,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        async def run() -> None:
            import asyncio

            import moorage

            try:
                # The library's own deadlines say whom they waited for; this one only makes sure of an end.
                async with asyncio.timeout(timeout + GRACE_S):
                    named = cluster_of(cluster, registry, kwargs.values())
                    async with await moorage.connect(
                        named, registry=registry, secret_file=secret_file, timeout=timeout
                    ) as connected:
                        await body(connected, as_json, *args, **kwargs)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"no answer within {timeout:g} s; see `moorage status`; --timeout waits longer"
                ) from None

        run_or_exit(run, as_json=as_json)

    return connection_options(_TIMEOUT(command))


def run_or_exit(main: Callable[[], Coroutine[Any, Any, None]], *, as_json: bool) -> None:
    """Run a coroutine on uvloop; an error of Moorage becomes one line and its exit code, no traceback. So
    does a file that cannot be used; any other exception is our own mistake, and keeps its traceback."""
    import uvloop

    from moorage.wire.buffers import reuse_payload_memory

    reuse_payload_memory()

    try:
        uvloop.run(main())
    except MoorageError as error:
        output.emit_error(error, as_json=as_json)
        raise SystemExit(int(exit_code(error))) from None
    except OSError as error:
        if error.filename is None:
            raise
        refused = Invalid(f"cannot use {error.filename}: {error.strerror}")
        output.emit_error(refused, as_json=as_json)
        raise SystemExit(int(exit_code(refused))) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
