"""``latentwire train --dry-run``: what a run would do, before it does it. Writes no file."""

from __future__ import annotations

import resource
import sys
import time

import torch

from ..core.console import print_table, print_text
from ..core.files import human_bytes
from .building import build_model, parameters, pick_device
from .bundles import weights
from .config import Config
from .llm import LMWrapper
from .maker import Maker, TextReader, Work
from .model import LatentModel
from .objective import Objective
from .optim import set_trained
from .runfolder import to_toml
from .speed import Flops, measure_peak
from .stages import at
from .student import teach
from .train import Data
from .tree import KINDS, Tree


def preview(config: Config) -> None:
    """Print the resolved config, parameter counts, stages, a batch of each, and measured time and memory of a step.

    Raises:
        InputError, ModelError: everything that the run itself would raise before its first step.
    """
    print_text(to_toml(config))
    device = pick_device(config.device)
    data = Data.read(config)
    model = build_model(config, device)
    teach(model)
    readers = [TextReader.of(llm) for llm in model.llms]
    maker = Maker(config, data.questions, data.prose, TextReader.of(model.source), readers)
    questions = sum(len(item.questions) for item in data.questions)
    print_text(f"data: {len(data.questions)} contexts with {questions} questions, {len(data.prose)} passages,")
    print_text(f"      {sum(len(item.questions) for item in data.held_out)} held-out questions")
    print_table(["module", "parameters"], [[name, count] for name, count in parameters(model).items()])
    _stages(config, model, maker)
    _cost(config, model, maker, device)


def _stages(config: Config, model: LatentModel, maker: Maker) -> None:
    rows: list[list[object]] = []
    per_step = config.batch // config.micro_batch
    for span in config.spans():
        bundle = span.stage.bundle or config.bundle
        terms = ", ".join(f"{name} {value:g}" for name, value in weights(bundle, config.kd_weight).items())
        rows.append([span.stage.name, span.start, span.end, bundle, terms, ", ".join(span.stage.train)])
    print_table(["stage", "from", "to", "bundle", "terms", "trains"], rows)
    for span in config.spans():
        work = maker(span.start * per_step)
        print_text(f"\nfirst micro-batch of {span.stage.name}: {', '.join(f'{s}[{i}]' for s, i in work.origin)}")
        print_text(f"  encoder tokens {work.batch.lengths.tolist()}, latents {work.batch.counts.tolist()}")
        if not work.batch.trees:
            print_text("  no LLM reads it")
            continue
        tree = work.batch.trees[0]
        asked = ", ".join(f"{kind} {count}" for kind, count in zip(KINDS, tree.counts, strict=True))
        print_text(f"  rows of {tree.ids.shape[1]} positions, scored tokens: {asked}")
        for line in _spelled(model.llms[0], tree):
            print_text("  " + line)


def _spelled(llm: LMWrapper, tree: Tree) -> list[str]:
    """The first row: its prefix, then each branch with its target."""
    out: list[str] = []
    for number in range(int(tree.branch[0].max()) + 1):
        own = tree.branch[0] == number
        rows, ids, labels = tree.row_index[0][own], tree.ids[0][own], tree.labels[0][own]
        text = llm.tokenizer.decode(ids[rows < 0].tolist(), skip_special_tokens=False)
        target = llm.tokenizer.decode(labels[labels >= 0].tolist(), skip_special_tokens=False)
        kind = KINDS[int(tree.task[0][own][-1])] if number else "prefix"
        aim = f" -> {target!r}" if number else ""
        out.append(f"{kind}: [{int((rows >= 0).sum())} rows] {text!r}{aim}")
    return out


def _cost(config: Config, model: LatentModel, maker: Maker, device: torch.device) -> None:
    """Two micro-batches of each stage are computed; the second one counts."""
    per_step = config.batch // config.micro_batch
    flops, peak = Flops(model), measure_peak(device, config.precision)
    total, rows = 0.0, []
    for span in config.spans():
        began = time.perf_counter()
        works = [maker(span.start * per_step + i).to(device) for i in (0, 1)]
        made = (time.perf_counter() - began) / 2
        set_trained(model, span.stage)
        _compute(config, model, works[0])
        seconds = _compute(config, model, works[1])
        total += (span.end - span.start) * per_step * (seconds + (made if device.type == "cpu" else 0.0))
        share = flops(works[1], Objective.of(config, span.stage).llms) / seconds / peak
        rate = config.micro_batch / seconds
        rows.append(
            [span.stage.name, round(1000 * made, 1), round(1000 * seconds, 1), round(rate, 1), round(100 * share, 1)]
        )
    print_text()
    print_table(["stage", "make ms", "compute ms", "samples/s", "% of peak"], rows, "one micro-batch, measured")
    print_text(f"time: about {total / 60:.1f} minutes on this machine, without start and measurements")
    if device.type == "cuda":
        used = float(torch.cuda.max_memory_allocated(device))
    else:
        used = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
    trained = sum(p.numel() for p in model.parameters())
    moments = 8.0 * trained
    print_text(f"memory: {human_bytes(used)} now at most, {human_bytes(moments)} more for the optimiser")


def _compute(config: Config, model: LatentModel, work: Work) -> float:
    span = at(config.spans(), work.number // (config.batch // config.micro_batch))
    objective = Objective.of(config, span.stage)
    began = time.perf_counter()
    loss, _ = objective(model, work.batch, work.teachers)
    loss.backward()
    # Reading a number waits for the device.
    next(p.grad for p in model.parameters() if p.grad is not None).sum().item()
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds
