"""`moorage health`: asks the service of this environment whether it lives; for the image's health check."""

from __future__ import annotations

import os

import aiohttp
import click

from moorage.cli.options import Seconds, run_or_exit
from moorage.service.launch import http_address
from moorage.wire.errors import Unavailable


@click.command()
@click.option("--ready", is_flag=True, help="Ask whether it can serve now, not only whether it lives.")
@click.option("--timeout", type=Seconds(min=0.1), default=2.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print an error as JSON.")
def health(ready: bool, timeout: float, as_json: bool) -> None:
    """Exit with 0 when the service that has this environment (MOORAGE_HTTP_PORT, ...) answers."""

    async def run() -> None:
        url = f"http://{http_address(os.environ)}/{'readyz' if ready else 'healthz'}"
        try:
            async with aiohttp.request("GET", url, timeout=aiohttp.ClientTimeout(timeout)) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{url} does not answer: {error}; is MOORAGE_HTTP_PORT its port?") from None
        if answer.status != 200:
            raise Unavailable(f"{url} says {answer.status}: {text.strip()}")

    run_or_exit(run, as_json=as_json)
