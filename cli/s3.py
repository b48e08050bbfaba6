"""`moorage s3`: buckets for programs that speak S3, until told to stop."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl

import click

from moorage.cli.options import connection_options, run_or_exit
from moorage.wire import address
from moorage.wire.errors import Invalid

LISTEN = "127.0.0.1:9000"


@click.command()
@click.option(
    "--listen", default=LISTEN, show_default=True, help="HOST:PORT to serve at; port 0: a free one."
)
@click.option("--region", default="us-east-1", show_default=True, help="That clients have to name.")
@click.option(
    "--domain",
    multiple=True,
    help="Of this server, so that buckets are found as BUCKET.DOMAIN too; repeatable.",
)
@click.option("--tls-cert", help="PEM file with the certificate and those up to its root.")
@click.option("--tls-key", help="PEM file with its key.")
@click.option(
    "--replicas",
    type=int,
    default=3,
    show_default=True,
    help="Of each object in buckets that are made by S3.",
)
@click.option("--http", help="HOST:PORT for /healthz, /readyz and /metrics.")
@connection_options
def s3(
    listen: str,
    region: str,
    domain: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    replicas: int,
    http: str | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Serve buckets and objects by the protocol of S3, until SIGTERM or SIGINT.

    It keeps nothing: run as many as you like. `moorage key create` makes the keys that clients sign with.
    """

    async def run() -> None:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

        import moorage
        from moorage.service.http import HttpServer
        from moorage.service.launch import join_address
        from moorage.service.log import configure

        try:
            from moorage.gateway.s3.server import S3Server
        except ImportError as error:
            raise Invalid(f"{error}: install moorage[s3]") from error

        host, port = _place("--listen", listen)
        probes = None if http is None else _place("--http", http)
        tls = _tls(tls_cert, tls_key)
        domains = [_domain(each) for each in domain]
        if not re.fullmatch(r"[a-z0-9-]{1,63}", region, re.ASCII):
            raise Invalid(f"--region {region!r}: use one such as us-east-1")
        configure("INFO")
        metrics = CollectorRegistry()
        ProcessCollector(registry=metrics)
        PlatformCollector(registry=metrics)
        async with await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected:
            server = S3Server(
                *(connected,), region=region, domains=domains, replicas=replicas, tls=tls, metrics=metrics
            )
            told = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, told.set)
            side = HttpServer(
                token=None, metrics=metrics, not_ready=lambda: ["stopping"] if told.is_set() else []
            )
            try:
                at = join_address(host, await server.start(host, port))
                ready = {"event": "ready", "url": f"{'https' if tls else 'http'}://{at}", "region": region}
                if probes is not None:
                    ready["http"] = join_address(probes[0], await side.start(*probes))
                click.echo(
                    json.dumps(ready) if as_json else f"S3 is served at {ready['url']}; stop with Ctrl-C"
                )
                await told.wait()
            finally:
                await server.stop()
                await side.stop()

    run_or_exit(run, as_json=as_json)


def _place(option: str, text: str) -> tuple[str, int]:
    found = address.parse(text)
    if not isinstance(found, address.Tcp):
        raise Invalid(f"{option} {text!r}: use HOST:PORT")
    return found.host, found.port


def _domain(text: str) -> str:
    name = text.lower().strip(".")
    if not re.fullmatch(r"[a-z0-9-]+(?:[.][a-z0-9-]+)*", name, re.ASCII):
        raise Invalid(f"--domain {text!r}: use a name such as s3.example.com, without a port")
    return name


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise Invalid("--tls-cert and --tls-key belong together")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(f"cannot use {certificate} and {key}: {error.strerror or error}") from None
    return context
