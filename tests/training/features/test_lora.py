"""What only LoRA can do: peft's layers come and go, the matrices that the options name, a merge that is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from latentwire.core.errors import ModelError
from latentwire.training.config import Config
from latentwire.training.features.lora import Lora
from latentwire.training.features.options import PROJECTIONS, LoraOptions
from latentwire.training.llm import LMWrapper
from latentwire.training.optim import _rate

Make = Callable[..., Config]
CPU = torch.device("cpu")
NONE = torch.zeros(1, 1, 1)


def _lora(config: Config, llm: LMWrapper) -> Lora:
    """One whose changes are no longer zero."""
    feature = Lora(config, llm)
    torch.manual_seed(2)
    for parameter in feature.B.parameters():
        nn.init.normal_(parameter, std=0.2)
    return feature


@pytest.mark.parametrize(
    "options", [LoraOptions(), LoraOptions(2, 3, ("v_proj", "down_proj"), 1)], ids=["default", "one-layer"]
)
def test_options_say_which_matrices_change(tiny_config: Make, tiny_gemma: Path, options: LoraOptions) -> None:
    llm = LMWrapper(str(tiny_gemma), torch.float32, CPU)
    feature = _lora(tiny_config(features=("lora",), lora=options), llm)
    wanted = {f"{i}/{name}" for i in range(options.layers or 2) for name in options.targets}
    assert set(feature.A) == set(feature.B) == wanted
    assert set(PROJECTIONS) >= set(options.targets)
    assert {a.shape[0] for a in feature.A.values()} == {b.shape[1] for b in feature.B.values()} == {options.rank}
    assert set(feature.state_dict()) == {f"{side}.{where}" for side in "AB" for where in wanted}


def test_it_is_the_low_rank_change_of_the_matrix(tiny_config: Make, tiny_llm: Path) -> None:
    """Against weights merged by hand: what an export computes."""
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    feature = _lora(tiny_config(features=("lora",), lora=LoraOptions(rank=3, alpha=5)), llm)
    embeds, mask = torch.randn(2, 6, llm.width), torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    positions = torch.arange(6)[None].expand(2, -1)
    with torch.no_grad():
        plain = llm.hidden(embeds, mask, positions)
        with feature.active(NONE):
            changed = llm.hidden(embeds, mask, positions)
        again = llm.hidden(embeds, mask, positions)
        for where, a in feature.A.items():
            layer, name = where.split("/")
            (site,) = (m for n, m in llm.model.model.layers[int(layer)].named_modules() if n.endswith(name))
            site.weight += 5 / 3 * feature.B[where] @ a
        merged = llm.hidden(embeds, mask, positions)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    apart, moved = float((changed - merged).abs().max()), float((changed - plain).abs().max())
    print(f"LoRA beside the weights and merged into them: {apart:.1e} apart, moved by {moved:.1f}")
    assert apart < 1e-5
    assert moved > 1e-2


def test_an_error_inside_leaves_the_llm_as_it_was(tiny_config: Make, tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    modules = dict(llm.model.named_modules())
    feature = _lora(tiny_config(features=("lora",)), llm)
    inside: list[bool] = []

    def stop() -> None:
        with feature.active(NONE):
            inside.append(dict(llm.model.named_modules()) != modules)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert inside == [True]
    assert dict(llm.model.named_modules()) == modules
    assert not hasattr(llm.model, "peft_config")


def test_weights_stay_f32_beside_a_bf16_llm(tiny_config: Make, tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.bfloat16, CPU)
    feature = _lora(tiny_config(features=("lora",)), llm)
    assert {p.dtype for p in feature.parameters()} == {torch.float32}
    mask, positions = torch.ones(4, 4, dtype=torch.bool).tril()[None, None], torch.arange(4)[None]
    with feature.active(NONE):
        out = llm.hidden(torch.randn(1, 4, llm.width).bfloat16(), mask, positions)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None for p in feature.parameters())


def test_features_learn_at_the_rate_of_what_is_new() -> None:
    """Whatever their parameters are called: a key of theirs is no closed-form projection, a layer no copied one."""
    names = ("features.x.latent_adapters.key.weight", "features.x.coprocessor.layers.0.down")
    assert [_rate(name, copied=True) for name in names] == ["lr_new", "lr_new"]
    assert _rate("encoder.layers.0.mlp.up_proj.weight", copied=True) == "lr_copied"


def test_more_layers_than_there_are(tiny_config: Make, tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    with pytest.raises(ModelError, match="at most 2 layers") as caught:
        Lora(tiny_config(features=("lora",), lora=LoraOptions(layers=3)), llm)
    assert caught.value.code == 3210
