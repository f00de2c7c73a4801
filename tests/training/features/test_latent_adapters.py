"""What only latent adapters do: their formula, the layers they stand before, rows without latents, hooks that go."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.training.config import Config, from_mapping
from latentwire.training.features.latent_adapters import LatentAdapters, chosen
from latentwire.training.features.options import LatentAdaptersOptions
from latentwire.training.llm import LMWrapper

Make = Callable[..., Config]
CPU = torch.device("cpu")
D_Z = 16


def _adapters(config: Config, llm: LMWrapper, **options: object) -> LatentAdapters:
    """With an open gate."""
    own = LatentAdaptersOptions(**{"rank": 6, "heads": 2, "layers": (1,), **options})  # type: ignore[arg-type]
    feature = LatentAdapters(from_mapping({**config.to_json(), "latent_adapters": vars(own)}, "test"), llm)
    torch.manual_seed(4)
    torch.nn.init.normal_(feature.gate)
    return feature


def _latents(*counts: int) -> torch.Tensor:
    """Rows with so many latents, four slots each."""
    z = torch.randn(len(counts), 4, D_Z)
    for row, count in enumerate(counts):
        z[row, count:] = 0
    return z


def _hidden(llm: LMWrapper, embeds: torch.Tensor) -> torch.Tensor:
    size = embeds.shape[1]
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    return llm.hidden(embeds, mask, torch.arange(size)[None].expand(len(embeds), -1))


def test_the_formula_by_hand(tiny_config: Make, tiny_llm: Path) -> None:
    """One position, one number at a time."""
    feature = _adapters(tiny_config(), LMWrapper(str(tiny_llm), torch.float32, CPU))
    width, z, x = feature.query.shape[1], _latents(3)[0].tolist(), torch.randn(feature.query.shape[1]).tolist()
    query, key, value, out, gate = (
        getattr(feature, name)[0].detach().tolist() for name in ("query", "key", "value", "out", "gate")
    )
    size = math.sqrt(sum(a * a for a in x) / width + 1e-6)
    expected = list(x)
    for head in range(2):
        dims = range(3 * head, 3 * head + 3)
        scores, carried = [], []
        for latent in z[:3]:
            norm = math.sqrt(sum(a * a for a in latent) / D_Z + 1e-6)
            k = {r: sum(a / norm * key[i][r] for i, a in enumerate(latent)) for r in dims}
            carried.append({r: sum(a / norm * value[i][r] for i, a in enumerate(latent)) for r in dims})
            q = {r: sum(a / size * query[i][r] for i, a in enumerate(x)) for r in dims}
            scores.append(math.exp(sum(q[r] * k[r] for r in dims) / math.sqrt(3)))
        for r in dims:
            mixed = sum(s * v[r] for s, v in zip(scores, carried, strict=True)) / sum(scores)
            for i in range(width):
                expected[i] += size * mixed * gate[r] * out[r][i]
    keys, values, filled = feature.keys_values(torch.tensor([z]))
    with torch.no_grad():
        found = feature.read(0, torch.tensor([[x]]), keys[0], values[0], filled)[0, 0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_a_row_without_latents_reads_what_it_read(tiny_config: Make, tiny_gemma: Path) -> None:
    """Beside a row that has some; and more empty slots change nothing for that one."""
    llm = LMWrapper(str(tiny_gemma), torch.float32, CPU)
    feature, embeds, z = _adapters(tiny_config(), llm), torch.randn(2, 5, llm.width), _latents(2, 0)
    with torch.no_grad():
        plain = _hidden(llm, embeds)
        with feature.active(z):
            read = _hidden(llm, embeds)
        with feature.active(torch.cat([z, torch.zeros(2, 3, D_Z)], dim=1)):
            wide = _hidden(llm, embeds)
        with feature.active(z[:, :2]):
            narrow = _hidden(llm, embeds)
    torch.testing.assert_close(read[1], plain[1], rtol=0, atol=0)
    assert float((read[0] - plain[0]).abs().max()) > 1e-3
    torch.testing.assert_close(wide, read, rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow, read, rtol=0, atol=1e-5)


def test_the_llm_is_as_it_was_behind_an_error(tiny_config: Make, tiny_llm: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    feature, embeds = _adapters(tiny_config(), llm), torch.randn(1, 4, llm.width)
    with torch.no_grad():
        plain = _hidden(llm, embeds)
        with pytest.raises(RuntimeError), feature.active(_latents(4)):
            _hidden(llm, embeds[..., 1:])
        torch.testing.assert_close(_hidden(llm, embeds), plain, rtol=0, atol=0)


def test_layers_stand_at_equal_distances() -> None:
    assert chosen(LatentAdaptersOptions(depths=4), 30, "x") == (6, 12, 18, 24)
    assert chosen(LatentAdaptersOptions(depths=4), 18, "x") == (3, 7, 10, 14)
    assert chosen(LatentAdaptersOptions(depths=9), 3, "x") == (1, 2)
    assert chosen(LatentAdaptersOptions(), 1, "x") == (0,)
    assert chosen(LatentAdaptersOptions(layers=(0, 5)), 6, "x") == (0, 5)


def test_impossible_options_are_refused(tiny_config: Make, tiny_llm: Path) -> None:
    for name, value in (
        ("rank", 0),
        ("rank", 6),
        ("heads", 0),
        ("depths", 0),
        ("layers", [1, 1]),
        ("layers", [2, 1]),
        ("layers", [-1]),
    ):
        with pytest.raises(ModelError, match=rf"latent_adapters\.{name}") as caught:
            from_mapping({"latent_adapters": {name: value}}, "test")
        assert caught.value.code == 3210
    with pytest.raises(ModelError, match=r"from 0 to 1, got 7") as caught:
        _adapters(tiny_config(), LMWrapper(str(tiny_llm), torch.float32, CPU), layers=(0, 7))
    assert caught.value.code == 3210
