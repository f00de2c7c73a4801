"""``latentwire bench``: options and output only; ``commands`` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..runtime.choices import BackendName, CodecName

app = typer.Typer(
    help="Measure speed, memory and quality beside other runtimes.", no_args_is_help=True, add_completion=False
)


ArrivalsName = Literal["poisson", "bursty"]

Bundles = Annotated[
    list[Path] | None,
    typer.Option("--bundle", "-b", help="A bundle; may be given again. Default: the shipped checkpoint."),
]
Llm = Annotated[str, typer.Option(help="Without --bundle: the model to export it for.")]
Peers = Annotated[
    list[str] | None,
    typer.Option("--peer", help="Only this one, or this row of it; may be given again. `none`: no peer."),
]
Data = Annotated[Path | None, typer.Option(help="Texts and questions, JSONL as benchmarks/texts.jsonl.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Samples a round. Default: 32.", show_default=False)]
Rounds = Annotated[int | None, typer.Option(min=1, help="Timed rounds. Default: 3.", show_default=False)]
Batches = Annotated[
    list[int] | None, typer.Option("--batch", min=1, max=4096, help="Try this size; may be given again.")
]
NewTokens = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Of every answer. Default: 16.", show_default=False)
]
Requests = Annotated[
    int | None, typer.Option(min=1, help="Single requests of a latency figure. Default: 8.", show_default=False)
]
Latents = Annotated[int | None, typer.Option(min=1, help="M. Default: the bundle's own.", show_default=False)]
Codec = Annotated[CodecName, typer.Option(help="Of frames.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Computing threads of every process. Default: all.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; of our own processes.")]
EngineOption = Annotated[BackendName, typer.Option("--engine", help="Of our own processes.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes: a rehearsal, no figures.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for <machine>-<date>.md, .json and .png.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _register(kind: str, help_text: str) -> None:
    """One benchmark as a command; all take the same options."""

    def command(
        bundle: Bundles = None,
        llm: Llm = "smollm2-135m",
        peer: Peers = None,
        data: Data = None,
        samples: Samples = None,
        rounds: Rounds = None,
        batch: Batches = None,
        new_tokens: NewTokens = None,
        requests: Requests = None,
        latents: Latents = None,
        codec: Codec = "i8",
        threads: Threads = None,
        device: Device = "cpu",
        engine: EngineOption = "auto",
        quick: Quick = False,
        out: Out = None,
        as_json: Json = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        from ..core.console import configure, run_cli

        def body() -> int:
            from .commands import KINDS, Asked, run

            named: dict[str, Any] = {
                "samples": samples,
                "rounds": rounds,
                "batches": tuple(batch) if batch else None,
                "new_tokens": new_tokens,
                "requests": requests,
                "latents": latents,
                "codec": codec,
            }
            sizes = {name: value for name, value in named.items() if value is not None}
            asked = Asked(
                tuple(bundle or ()), llm, tuple(peer or ()), data, threads, device, engine, quick, out, as_json, sizes
            )
            return run(list(KINDS) if kind == "all" else [kind], asked)

        configure(quiet=quiet or None, debug=debug or None)
        run_cli(body)

    app.command(kind, help=help_text)(command)


_EXAMPLE = "\n\nExample:\n\n  latentwire bench {kind} --bundle bundle/ --quick"
_TOLD = {
    "throughput": "Samples a minute of answering and compressing, peers in rounds that alternate with ours.\n\n"
    "W1 answers from frames, W1-text from whole texts, W1-same from as many\n"
    "tokens as W1 has positions, W3 from text to frame to answer.",
    "latency": "Milliseconds of one request: first token, whole answer, first answer of a cold process.",
    "compress": "Texts to frames: the encoder alone, with the tokenizer, and as a job from disk to disk.",
    "scaling": "Curves against context length, latents a text, new tokens, and documents.",
    "quality": "F1, exact match and nats a token beside samples a minute; later bundles against the first.",
    "all": "Everything above, into one set of files.",
}
for _kind, _text in _TOLD.items():
    _register(_kind, _text + _EXAMPLE.format(kind=_kind))


@app.command("peers")
def peers_command(
    peer: Peers = None,
    llm: Llm = "smollm2-135m",
    again: Annotated[bool, typer.Option("--again", help="Try one that failed, or make it anew.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make the environments of the runtimes to compare with.

    Each gets a folder of its own below the store, with pinned versions and
    the same model in its own form. One that cannot be installed here is
    remembered with the reason, which the tables then show.

    Example:

      latentwire bench peers --peer llama.cpp
    """
    from ..core.console import configure, run_cli

    def body() -> int:
        from .commands import set_up_peers

        return set_up_peers(peer or [], llm, again)

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("counts")
def counts_command(
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Default: the shipped checkpoint.")] = None,
    renew: Annotated[
        Path | None,
        typer.Option(help="Write what was counted to this file: benchmarks/counts.json.", show_default=False),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Count calls, padding, bytes and graph nodes, and compare with the stored counts.

    Counts do not depend on the machine. The tests compare them too; a change
    that means to alter them renews the file in the same commit.

    Exit status: 0 as stored, 5 something differs.

    Example:

      latentwire bench counts --renew benchmarks/counts.json
    """
    from ..core.console import configure, run_cli

    def body() -> int:
        from .commands import count

        return count(bundle, renew, as_json)

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("serve")
def serve_command(
    url: Annotated[str, typer.Argument(help="Of a running `latentwire serve`, with /v1.", metavar="URL")],
    clients: Annotated[
        list[int] | None, typer.Option(min=1, max=4096, help="Clients at once; may be given again. Default: 1, 8, 64.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="Of each number of clients.")] = 200,
    new_tokens: NewTokens = None,
    data: Data = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="LATENTWIRE_API_KEY", help="If the server asks for one.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put a bounded load on a running server: milliseconds, refusals, and
    whether every request was answered.

    Streams answers about frames that the server makes of the benchmark's
    texts. Refused requests are sent again after `Retry-After`.

    Exit status: 0 all answered, 3 some were lost.

    Example:

      latentwire bench serve http://127.0.0.1:8000/v1 --clients 1 --clients 100
    """
    from ..core.console import configure, run_cli

    def body() -> int:
        from .commands import serve_load
        from .serving import Load

        what = Load(url, tuple(clients or (1, 8, 64)), requests, new_tokens or 16, api_key)
        return serve_load(what, data, as_json)

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("ensemble")
def ensemble_command(
    bundle: Annotated[list[Path], typer.Option("--bundle", "-b", help="One for each LLM; all of one encoder.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Held-out questions, JSONL or JSONL.gz, as for `eval`.")],
    questions: Annotated[int, typer.Option("--questions", "-n", min=1, help="How many, in a seeded order.")] = 200,
    new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Of every answer, at most.")] = 16,
    codec: Codec = "i8",
    seed: Annotated[int, typer.Option(min=0, help="Of the order and of the intervals.")] = 0,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write STEM.md and STEM.json.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure several LLMs that answer together from the same frames, by
    each rule, against the best of them alone.

    F1 and exact match with 95 % intervals over texts; differences are
    paired. The questions are those of `latentwire eval` with the same
    number and seed 0.

    Example:

      latentwire bench ensemble -b llama/ -b gemma/ --data dev.jsonl.gz -n 200
    """
    from ..core.console import configure, run_cli

    def body() -> int:
        from .commands import ask_together
        from .ensemble import Together

        what = Together(tuple(bundle), data, questions, new_tokens, codec, seed, threads)
        return ask_together(what, out, as_json)

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)


@app.command("simulate")
def simulate_command(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Time the steps of this one.", show_default=False)
    ] = None,
    cost: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            help="Instead of --bundle, in ms: a prefill, each position of it, a decode, each row of it.",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="JSONL with `at` (seconds), `prompt`, `new_tokens` and `limit` a line.", show_default=False),
    ] = None,
    arrivals: Annotated[ArrivalsName, typer.Option(help="Without --trace: how requests come.")] = "poisson",
    requests: Annotated[int, typer.Option(min=1, max=20_000_000, help="How many.")] = 100_000,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Requests a second. Default: see --load.", show_default=False)
    ] = None,
    load: Annotated[float, typer.Option(min=0.01, max=10, help="Share of what full rows could do.")] = 0.8,
    prompt: Annotated[int, typer.Option(min=2, max=1024, help="Median positions of a prompt.")] = 51,
    mean_tokens: Annotated[float, typer.Option(min=1, max=1024, help="Mean tokens of an answer.")] = 6,
    new_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Most tokens of an answer.")] = 16,
    rows: Annotated[int, typer.Option(min=1, max=4096, help="Of each engine.")] = 16,
    engines: Annotated[int, typer.Option(min=1, max=10_000, help="Engines that share the requests.")] = 1,
    waiting: Annotated[
        int | None, typer.Option(min=1, help="Most requests that wait at an engine.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the requests.")] = 0,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for files.", show_default=False)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Waiting times under load: refilled rows against whole batches.

    Runs the scheduler itself on made-up or recorded requests, for one engine
    or a cluster of them; only the time of a step is computed, from costs
    measured on a bundle.

    Examples:

      latentwire bench simulate --bundle bundle/ --arrivals bursty

      latentwire bench simulate --cost 10 0.9 30 3 --engines 64 --requests 1000000
    """
    from ..core.console import configure, run_cli

    def body() -> int:
        from .simulation import Asked, run
        from .step_cost import Cost
        from .traces import Sizes

        sizes = Sizes(prompt, new=mean_tokens, limit=new_tokens)
        given = Cost(*cost) if cost else None
        return run(
            Asked(
                bundle,
                given,
                trace,
                arrivals,
                requests,
                rate,
                load,
                sizes,
                rows,
                engines,
                waiting,
                threads,
                seed,
                out,
                as_json,
            )
        )

    configure(quiet=quiet or None, debug=debug or None)
    run_cli(body)
