"""One more LLM for an encoder that is there: only its adapter moves, frames stay readable, the verdict is plain."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from latentwire.cli import app
from latentwire.core.errors import InputError, ModelError
from latentwire.export.export import Request as ExportRequest
from latentwire.export.export import export_bundle
from latentwire.export.publish import publish
from latentwire.models.configs import model_config
from latentwire.runtime.pipeline import Pipeline
from latentwire.training import adapt as adapt_module
from latentwire.training.adapt import Request, adapt, answer_gates, plan, verdict, with_data
from latentwire.training.building import open_checkpoint, parameters
from latentwire.training.checkpoint import load_tensors, read_meta
from latentwire.training.data import read_prose, read_questions
from latentwire.training.diagnose import Gate
from latentwire.training.estimate import H100_BF16, activations, estimate, read
from latentwire.training.quality import SHORT
from latentwire.training.train import Trainer

from .conftest import MakeConfig

CONFIGS = Path(__file__).parent / "configs"
"""The published ``config.json`` of two LLMs; no weights."""


@pytest.fixture(scope="module")
def known(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose encoder was made of the tiny Llama."""
    out = tmp_path_factory.mktemp("adapt") / "known"
    with Trainer(tiny_config(steps=2), out) as trainer:
        trainer.train()
    return out / "last"


@pytest.fixture(scope="module")
def many_stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "many.jsonl"
    towns = [f"{a}{b}" for a in ("Var", "Tol", "Bren", "Sor", "Kel", "Mor") for b in ("da", "min", "na", "ra", "ton")]
    rows = [
        {"context": f"The town of {t} has {n + 10} wells and a market.", "question": "Which town?", "answers": [t]}
        for n, t in enumerate(towns)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def request(llm: Path, known: Path, data: Path, out: Path, **changes: Any) -> Request:
    base = Request(str(llm), str(known), [data], out, steps=2, batch=4, micro_batch=4, questions=4)
    return replace(base, precision="fp32", device="cpu", **changes)


def test_another_family_learns_to_read_and_the_encoder_stands_still(
    known: Path, tiny_gemma: Path, many_stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    asked = request(tiny_gemma, known, many_stories, out)
    go = adapt(asked, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "adapt.json").read_text())
    assert found["go"] is go
    assert found["verdict"].startswith("go" if go else "no-go")
    assert set(found["figures"]["answers"]["rows"]) == set(SHORT)
    before, after = (load_tensors(folder / "encoder.safetensors") for folder in (known, out / "best"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Frames carry the encoder's fingerprint.
    assert read_meta(out / "best")["encoder"]["fingerprint"] == read_meta(known)["encoder"]["fingerprint"]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if r["event"] == "step"] == [1, 2]
    assert "adapter" in {r.get("stage") for r in log}

    assert adapt(asked, as_json=True) is go  # the same command again: nothing is left to train
    again = json.loads(capsys.readouterr().out)
    assert again["figures"] == found["figures"]
    assert (out / "log.jsonl").read_text().count('"event": "step"') == 2


def adapted(llm: Path, known: Path, data: Path, out: Path, *more: str) -> Any:
    words = ["adapt", "--llm", str(llm), "--checkpoint", str(known), "-d", str(data), "-o", str(out / "run")]
    sizes = ["--steps", "2", "--batch", "4", "--micro-batch", "4", "-n", "4", "--precision", "fp32", "--device", "cpu"]
    return CliRunner().invoke(app, [*words, *sizes, "--export", str(out / "bundle"), *more])


def test_a_go_is_published_and_exported(
    known: Path, tiny_llm: Path, tiny_gemma: Path, many_stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame of before, made for the first LLM, is answered by the bundle that the command leaves."""
    monkeypatch.chdir(tiny_llm.parent)  # a checkpoint knows the LLM of its encoder by name
    judged = adapt_module.judge

    def kind(*asked: Any) -> dict[str, Any]:
        return judged(*asked) | {"go": True}  # two steps do not make an adapter worth using

    monkeypatch.setattr(adapt_module, "judge", kind)
    gemma = roomy(tiny_gemma, tmp_path / "gemma")
    said = adapted(gemma, known, many_stories, tmp_path, "--json", "--quiet")
    assert said.exit_code == 0, said.output
    verdict_line, bundle_line = map(json.loads, said.stdout.splitlines())  # nothing else on stdout
    assert verdict_line["go"]
    assert bundle_line["bundle"] == str(tmp_path / "bundle")
    export_bundle(ExportRequest(str(published(known, tmp_path)), str(tiny_llm), tmp_path / "first", verify="none"))
    with Pipeline.open(tmp_path / "first") as first, Pipeline.open(tmp_path / "bundle") as second:
        assert second.bundle.manifest.llm.name == gemma.name
        gates = {gate["gate"]: gate["verdict"] for gate in second.bundle.manifest.quality["parity"]["gates"]}
        assert gates["weights"] == gates["tokens"] == "passed"
        frames = first.compress(["The town of Varda has 10 wells and a market."])
        assert len(second.generate(frames, ["Which town?"])) == 1
    judgement = (tmp_path / "run" / "adapt.json").stat().st_mtime_ns
    again = adapted(gemma, known, many_stories, tmp_path)
    assert again.exit_code == 6
    assert "LW-5008" in again.stderr
    # Refused before anything was trained or measured.
    assert (tmp_path / "run" / "adapt.json").stat().st_mtime_ns == judgement


def roomy(llm: Path, out: Path) -> Path:
    """The same with room for the texts on which an export measures what its precision costs."""
    shutil.copytree(llm, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048, "sliding_window": 2048}))
    return out


def published(checkpoint: Path, out: Path) -> Path:
    return publish(checkpoint, out / "published", {})


def test_a_no_go_is_not_exported(known: Path, tiny_gemma: Path, many_stories: Path, tmp_path: Path) -> None:
    said = adapted(tiny_gemma, known, many_stories, tmp_path)
    assert said.exit_code == 5
    assert "no-go" in said.stderr
    assert not (tmp_path / "bundle").exists()


def test_the_adapter_moves(known: Path, tiny_gemma: Path, many_stories: Path, tmp_path: Path) -> None:
    asked = request(tiny_gemma, known, many_stories, tmp_path)
    with Trainer(with_data(plan(asked), asked), tmp_path) as trainer:
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert {n.split(".")[0] for n in moved} == {"adapters"}


def test_data_is_split_by_context(known: Path, tiny_gemma: Path, many_stories: Path, tmp_path: Path) -> None:
    asked = request(tiny_gemma, known, many_stories, tmp_path)
    config = with_data(plan(asked), asked)
    train, held = ({i.context for i in read_questions(paths)} for paths in (config.data, config.eval_data))
    assert not train & held
    assert train | held == {i.context for i in read_questions([str(many_stories)])}
    assert {i.context for i in read_prose(config.prose)} == train
    own = with_data(plan(asked), replace(asked, eval_data=[many_stories]))
    assert own.data == own.eval_data == (str(many_stories),)


def test_too_little_data(known: Path, tiny_gemma: Path, story_file: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(story_file.read_text().splitlines()[0] + "\n")
    asked = request(tiny_gemma, known, one, tmp_path)
    with pytest.raises(InputError, match="LW-2104 too little data to hold some out"):
        with_data(plan(asked), asked)


@pytest.mark.parametrize(
    ("shuffle", "closed", "first", "read_back", "begins"),
    [
        (0.05, 0.5, 0.5, 0.5, "no-go: the LLM does not read"),
        (0.2, 0.5, 0.5, 0.5, "no-go yet: the latents are read a little"),
        (0.5, 0.2, 0.5, 0.5, "no-go yet: the latents are read, but not well enough (gap closed)"),
        (0.5, 0.5, -0.1, 0.5, "no-go yet: the latents are read, but not well enough (NLL below the first 8 tokens)"),
        (0.5, 0.5, 0.5, 0.1, "go: questions are answered from the latents; the text itself cannot"),
        (0.5, 0.5, 0.5, 0.5, "go: questions are answered from the latents, and"),
    ],
)
def test_verdicts(shuffle: float, closed: float, first: float, read_back: float, begins: str) -> None:
    rows = {kind: {"nll": 2.0} for kind in SHORT} | {"none": {"nll": 4.0}, "first": {"nll": 2.0 + first}}
    gates = answer_gates({"rows": rows, "shuffle_gap": shuffle, "gap_closed": closed}, 8)
    said = verdict(gates, [Gate("reconstruction", "tokens right", read_back, 0.25, "")])
    assert said.startswith(begins)
    assert said.startswith("go") == all(g.passed for g in gates)


PUBLISHED = {"llama-3.1-8b": 8_030_261_248, "qwen2.5-7b": 7_615_616_512}
"""Parameters as their model cards give them, to the last one."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_estimates_of_large_llms(name: str, known: Path) -> None:
    config = replace(plan(Request("x", str(known), (), Path())), d_z=256, mlp_hidden=1024, lookup_size=32768)
    found = estimate(config, model_config(str(CONFIGS / name / "config.json")))
    assert found.llm_parameters == PUBLISHED[name]
    assert found.trained_parameters < 0.01 * found.llm_parameters
    assert found.weights_bytes > 2 * found.llm_parameters
    assert 16e9 < found.memory_bytes < 80e9  # one large GPU
    assert 0 < found.seconds(H100_BF16) < 3600
    twice = estimate(replace(config, steps=2 * config.steps), model_config(str(CONFIGS / name)))
    assert twice.flops == 2 * found.flops
    assert twice.memory_bytes == found.memory_bytes


def test_the_estimate_counts_what_is_built(known: Path, tiny_gemma: Path, many_stories: Path, tmp_path: Path) -> None:
    asked = request(tiny_gemma, known, many_stories, tmp_path / "run")
    config = plan(asked)
    found = estimate(config, model_config(str(tiny_gemma)))
    with Trainer(with_data(config, asked), asked.out) as trainer:
        trainer.train()
    model, _ = open_checkpoint(asked.out / "last", "cpu")
    counted = parameters(model)
    assert found.trained_parameters == counted[f"adapter/{model.llms[0].name}"]
    assert found.encoder_parameters == counted["encoder"]
    assert found.llm_parameters == sum(p.numel() for p in model.llms[0].model.parameters())


def test_activations_are_what_autograd_keeps(tiny_llm: Path) -> None:
    theirs = read(model_config(str(tiny_llm)) | {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3})
    model = AutoModelForCausalLM.from_config(theirs, attn_implementation="sdpa").requires_grad_(False)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = torch.randn(2, 64, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.model(inputs_embeds=rows, use_cache=False).last_hidden_state
    assert out.requires_grad
    told = activations(theirs, 128, 4)
    print(f"kept {sum(kept.values())}, told {told}")
    assert 0.75 * told < sum(kept.values()) < 1.25 * told


def test_dry_run_reads_a_config_alone(known: Path, tmp_path: Path) -> None:
    llm = CONFIGS / "llama-3.1-8b"
    call = ["adapt", "--llm", str(llm), "--checkpoint", str(known), "--dry-run"]
    plain = CliRunner().invoke(app, call)
    assert plain.exit_code == 0, plain.output
    assert "8,030,261,248" in plain.output
    assert "memory: in all, at most" in plain.output
    told = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    assert told["here_seconds"] > told["h100_seconds"] > 0
    missing = CliRunner().invoke(app, ["adapt", "--llm", str(llm)])
    assert missing.exit_code == 2
    nothing = CliRunner().invoke(app, ["adapt", "--llm", str(tmp_path), "--checkpoint", str(known), "--dry-run"])
    assert nothing.exit_code == 5
    assert "LW-3204 no config.json" in nothing.stderr


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match="LW-3203"):
        read({"model_type": "abacus"})
