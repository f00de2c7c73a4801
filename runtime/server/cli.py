"""``latentwire serve``: options only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..flags import Batch, Debug, Device, EngineOption, Quiet, Threads, run_body

app = typer.Typer(help="Answer over HTTP.", no_args_is_help=True)


@app.command("serve")
def serve_command(
    bundle: Annotated[
        Path, typer.Argument(help="Folder made by `latentwire export`.", metavar="BUNDLE", envvar="LATENTWIRE_BUNDLE")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Model name for clients. Default: the LLM's.")] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line; or one key in LATENTWIRE_API_KEY.")
    ] = None,
    batch_size: Batch = 16,
    queue: Annotated[int, typer.Option(min=1, help="Answers that may wait; more get 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer a request may ask for.")] = 1024,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request's body.")] = 1 << 20,
    connections: Annotated[int, typer.Option(min=1, help="Connections open at once.")] = 2048,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a request may take.")] = 120.0,
    drain: Annotated[float, typer.Option(min=0.1, help="Seconds for running requests after SIGTERM.")] = 30.0,
    idle: Annotated[float, typer.Option(min=0.1, help="Seconds a connection may wait for its next request.")] = 20.0,
    device: Device = "cpu",
    engine: EngineOption = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a bundle in the manner of OpenAI's API.

    Completions and chat over frames or texts, streamed or whole, frames
    made of texts, health and Prometheus metrics. Stops on SIGTERM or
    Ctrl-C when the running requests are answered. Needs the extra `serve`.

    Examples:

      latentwire serve bundle/

      latentwire serve bundle/ --host 0.0.0.0 --api-keys keys.txt
    """

    def body() -> int:
        from ...core.extras import needs
        from ..options import Machine
        from .keys import read_keys
        from .settings import Limits

        keys = read_keys(api_keys)
        with needs("serve"):
            from .run import Address, serve
        limits = Limits(
            body_bytes=max_body,
            bodies_bytes=max(64 << 20, max_body),
            connections=connections,
            rows=batch_size,
            waiting=queue,
            max_tokens=max_tokens,
            head_s=idle,
            request_s=timeout,
            drain_s=drain,
        )
        return serve(bundle, Machine(device, engine, threads), limits, Address(host, port), name, keys)

    run_body(body, quiet, debug)


if __name__ == "__main__":
    app()
