"""`moorage bench object`: measure buckets by library and by S3, beside another S3 server, as a table or as
JSON."""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import output
from moorage.cli.bench import bars, device_pids
from moorage.cli.options import SIZE, Seconds, connection_options, run_or_exit
from moorage.wire.errors import Invalid, MoorageError, Unavailable

if TYPE_CHECKING:
    from moorage.bench.object_stores import Store
    from moorage.bench.objects import Measurement, Subject, Workload
    from moorage.bench.s3_client import Endpoint
    from moorage.client.cluster import Cluster

MIB = 1 << 20
BYTES = 512 * MIB
WARM_UP = 32  # objects, where no list needs more
REGION = "us-east-1"  # of our own gateway


@click.command("object")
@click.option(
    "--seconds", type=Seconds(min=0.1), default=3.0, show_default=True, help="For each workload, each way."
)
@click.option("--by", type=click.Choice(["library", "s3", "both"]), default="both", show_default=True)
@click.option("--only", help="Only workloads whose name contains this, such as 'put' or '4 KiB'.")
@click.option(
    "--size",
    "sizes",
    type=SIZE,
    multiple=True,
    help="Of objects; repeatable.  [default: 4 KiB, 1 MiB, 64 MiB]",
)
@click.option(
    "--concurrency",
    "concurrencies",
    type=click.IntRange(1, 128),
    multiple=True,
    help="Operations under way; repeatable.  [default: 1, 16]",
)
@click.option(
    "--keys",
    type=click.IntRange(1, 1000),
    default=1000,
    show_default=True,
    help="On the page that is listed.",
)
@click.option(
    "--bytes",
    "bytes_max",
    type=SIZE,
    default=BYTES,
    help="That one workload puts at most.  [default: 512 MiB]",
)
@click.option("--replicas", type=int, default=3, show_default=True, help="Of each object.")
@click.option("--endpoint", metavar="URL", help="Another S3 server, measured side by side.")
@click.option("--region", help="Of the other server.  [env: AWS_REGION, AWS_DEFAULT_REGION; us-east-1]")
@click.option("--access-key", help="For the other server.  [env: AWS_ACCESS_KEY_ID]")
@click.option(
    "--secret-key-file",
    type=click.Path(path_type=Path),
    help="File with the secret of that key.  [env: AWS_SECRET_ACCESS_KEY, the secret itself]",
)
@connection_options
def bench_object(
    seconds: float,
    by: str,
    only: str | None,
    sizes: tuple[int, ...],
    concurrencies: tuple[int, ...],
    keys: int,
    bytes_max: int,
    replicas: int,
    endpoint: str | None,
    region: str | None,
    access_key: str | None,
    secret_key_file: Path | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Measure put, get, list and delete of objects of 4 KiB, 1 MiB and 64 MiB, 1 and 16 at once.

    By library: in this process. By S3: through a `moorage s3` that is started for it. With --endpoint the
    same at another S3 server, each workload right after ours. All in temporary buckets. Ctrl-C ends it early
    and still shows what was measured.
    """
    chosen = _workloads(sizes, concurrencies, keys, only)
    other = None if endpoint is None else _endpoint(endpoint, region, access_key, secret_key_file)
    options = {
        "seconds": seconds,
        "keys": keys,
        "bytes_max": bytes_max,
        "replicas": replicas,
        "endpoint": None if other is None else other.url,
    }
    plan = _Plan(chosen, options)
    found = {"--cluster": cluster, "--registry": registry, "--secret-file": secret_file}
    gateway_options = [f"{name}={value}" for name, value in found.items() if value is not None]

    async def run() -> None:
        import moorage

        async with (
            await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected,
            _subjects(connected, by, replicas, other, gateway_options) as subjects,
        ):
            try:
                await plan.run(subjects)
            finally:
                plan.show(as_json)
        if error := plan.failed():
            raise Unavailable(f"not all could be measured: {error}")

    run_or_exit(run, as_json=as_json)


def _workloads(
    sizes: tuple[int, ...], concurrencies: tuple[int, ...], keys: int, only: str | None
) -> list[tuple[Workload, bool]]:
    """Each with whether it is asked for: what is got or deleted has to be put, asked for or not."""
    from moorage.bench import objects

    every = objects.workloads(sizes or objects.SIZES, concurrencies or objects.CONCURRENCIES, keys)
    asked = {one for one in every if only is None or only in one.name}
    if not asked:
        names = "; ".join(one.name for one in every)
        raise click.UsageError(f"no workload's name contains {only!r}; there are: {names}")
    needed = {(one.size, one.concurrency) for one in asked if one.operation in ("get", "delete")}
    return [
        (one, one in asked)
        for one in every
        if one in asked or (one.operation == "put" and (one.size, one.concurrency) in needed)
    ]


def _endpoint(url: str, region: str | None, access_key: str | None, secret_file: Path | None) -> Endpoint:
    from moorage.bench.s3_client import Endpoint

    environment = os.environ
    key = access_key or environment.get("AWS_ACCESS_KEY_ID", "")
    secret = environment.get("AWS_SECRET_ACCESS_KEY", "")
    token = "" if access_key else environment.get("AWS_SESSION_TOKEN", "")
    try:
        if secret_file is not None:
            secret = secret_file.read_text().strip()
        place = region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or REGION
        found = Endpoint(url, place, key, secret, token)
    except OSError as error:
        raise click.UsageError(f"--secret-key-file {secret_file}: {error.strerror}") from None
    except Invalid as error:
        raise click.UsageError(f"--endpoint {error}") from None
    if not key or not secret:
        raise click.UsageError(
            f"a key for {url} is missing: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give"
            " --access-key and --secret-key-file"
        )
    return found


@asynccontextmanager
async def _subjects(
    cluster: Cluster, by: str, replicas: int, other: Endpoint | None, gateway_options: list[str]
) -> AsyncIterator[list[Subject]]:
    """What is measured, in this order: each with an open bucket, which is gone at the end, come what may."""
    from moorage.bench.object_stores import LibraryStore, S3Store
    from moorage.bench.objects import Subject
    from moorage.bench.s3_client import S3Client
    from moorage.cli.local_gateway import local_gateway

    servers = await device_pids(cluster)
    name = f"moorage-bench-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        subjects = []
        if by in ("library", "both"):
            library = LibraryStore(cluster, f"{name}-l", replicas)
            subjects.append(Subject(await _opened(stack, library, f"{name}-l"), servers=servers))
        if by in ("s3", "both"):
            gateway = await stack.enter_async_context(
                local_gateway("--replicas", str(replicas), *gateway_options)
            )
            ours = await stack.enter_async_context(_our_endpoint(cluster, gateway.url))
            client = await stack.enter_async_context(S3Client(ours))
            store = await _opened(stack, S3Store("s3", client, f"{name}-s"), f"{name}-s")
            subjects.append(Subject(store, gateway=gateway.pid, servers=servers))
        if other is not None:
            client = await stack.enter_async_context(S3Client(other))
            subjects.append(Subject(await _opened(stack, S3Store("endpoint", client, name), name)))
        yield subjects


async def _opened(stack: AsyncExitStack, store: Store, name: str) -> Store:
    async def remove() -> None:
        try:
            await store.remove()
        except MoorageError as error:
            message = f"bucket {name}, measured by {store.by}, is left over: remove it: {error}"
            raise type(error)(message, **error.details) from error

    stack.push_async_callback(remove)
    await store.open()
    return store


@asynccontextmanager
async def _our_endpoint(cluster: Cluster, url: str) -> AsyncIterator[Endpoint]:
    """With a key that is revoked at the end."""
    from moorage.bench.s3_client import Endpoint
    from moorage.client.cluster import DEFAULT_PRINCIPAL

    key = await cluster.keys.create(cluster.config.principal or DEFAULT_PRINCIPAL)
    try:
        yield Endpoint(url, REGION, key.id, key.secret)
    finally:
        await cluster.keys.revoke(key.id)


class _Plan:
    """All runs of one invocation, in order, with their progress."""

    def __init__(self, workloads: list[tuple[Workload, bool]], options: dict[str, Any]) -> None:
        self._workloads = workloads
        self._options = options
        self._began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._measured: list[Measurement] = []
        self._complete = False

    async def run(self, subjects: list[Subject]) -> None:
        lists = any(workload.operation == "list" for workload, _ in self._workloads)
        with bars() as shown:
            total = len(subjects) * (1 + len(self._workloads))
            task = shown.add_task("", total=total)

            def begin(what: str, subject: Subject) -> Callable[[], None]:
                shown.update(task, description=f"{what}, by {subject.by}")
                return lambda: shown.advance(task)

            for subject in subjects:
                done = begin("warm up", subject)
                await subject.prepare(self._options["keys"] if lists else WARM_UP)
                done()
            for workload, asked in self._workloads:
                for subject in subjects:
                    done = begin(workload.name, subject)
                    made = await subject.measure(
                        workload, self._options["seconds"], self._options["bytes_max"]
                    )
                    if asked or made.error is not None:
                        self._measured.append(made)
                    done()
        self._complete = True

    def failed(self) -> str | None:
        """The first error of a workload; others were measured all the same."""
        said = (f"{one.workload.name}, by {one.by}: {one.error}" for one in self._measured if one.error)
        return next(said, None)

    def show(self, as_json: bool) -> None:
        """What was measured so far, which after an interrupt is not all."""
        from moorage.bench import object_report

        options = {**self._options, "complete": self._complete}
        if as_json:
            output.emit_json(object_report.document(self._measured, began=self._began, options=options))
        elif self._measured:
            output.console().print(object_report.table(self._measured, "Objects"))
