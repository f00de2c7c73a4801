"""Finite scalar quantisation, trained through: latents -> a few small codes -> latents.

FSQ (Mentzer et al. 2023, arXiv 2309.15505): a linear map to a few dimensions, each bounded and rounded to one of a
few levels, and a map back. Rounding has no gradient, so the bounded value's gradient passes straight through.
What a frame carries are the codes; ``runtime/fsq.py`` packs them and must agree on every level (tests/golden/fsq.json).

    code = floor((x + 1) L / 2)          x = tanh(down(z)) in [-1, 1], L levels of equal width
    x'   = (2 code + 1) / L - 1          the middle of the level
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROFILES: Final = {1: (16, 4), 2: (20, 8)}
"""Profile of the wire format -> (dimensions, levels): 32 and 60 bits a latent."""


FIT_RATE: Final = 3e-3
FIT_BATCH: Final = 512


def to_codes(x: Tensor, levels: int) -> Tensor:
    """Bounded values f32 [...] in [-1, 1] to codes int64 [...], 0..levels-1."""
    return ((x + 1) * (levels / 2)).floor().clamp(0, levels - 1).to(torch.int64)


def to_values(codes: Tensor, levels: int) -> Tensor:
    """Codes to the middles of their levels, f32; exact, because the numbers of levels are powers of two."""
    return (2 * codes.float() + 1) / levels - 1


def rounding_share(step: int, steps: int, start: float, ramp: float) -> float:
    """Share of samples that are rounded at a step: from ``start`` to 1 over the first ``ramp`` of all steps."""
    return min(1.0, start + (1.0 - start) * step / max(1.0, ramp * steps))


class Quantiser(nn.Module):
    """The bottleneck: f32 [B,M,d_z] -> codes int64 [B,M,dims] -> f32 [B,M,d_z], unit RMS as the encoder's latents.

    Args:
        d_z: width of a latent.
        profile: key of ``PROFILES``.
        hidden: width of an MLP beside each linear map, started at zero.
    """

    def __init__(self, d_z: int, profile: int, hidden: int) -> None:
        super().__init__()
        self.dims, self.levels = PROFILES[profile]
        self.down = Residual(d_z, hidden, self.dims)
        self.up = Residual(self.dims, hidden, d_z)

    def forward(self, z: Tensor, rounded: Tensor) -> Tensor:
        """Latents as a reader gets them: rounded where ``rounded`` bool [B], untouched elsewhere; empty slots stay 0.

        The untouched rows keep one checkpoint good for the other codecs too.
        """
        x = self.bounded(z)
        straight = x + (to_values(to_codes(x, self.levels), self.levels) - x).detach()
        out = self.expand(straight) * z.any(-1, keepdim=True)
        return torch.where(rounded[:, None, None], out, z)

    def bounded(self, z: Tensor) -> Tensor:
        """f32 [B,M,dims] in [-1, 1]."""
        out: Tensor = self.down(z)
        return out.tanh()

    def codes(self, z: Tensor) -> Tensor:
        """What travels, int64 [B,M,dims]."""
        return to_codes(self.bounded(z), self.levels)

    def latents(self, codes: Tensor) -> Tensor:
        """What the reader makes of it, f32 [B,M,d_z]."""
        return self.expand(to_values(codes, self.levels))

    def expand(self, x: Tensor) -> Tensor:
        """Level middles f32 [B,M,dims] to latents of unit RMS."""
        z: Tensor = self.up(x)
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)


class Residual(nn.Module):
    """A linear map plus an MLP that starts at zero: f32 [...,a] -> f32 [...,b]."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.wide = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, out, bias=False)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        linear: Tensor = self.linear(x)
        bend: Tensor = self.narrow(F.gelu(self.wide(x)))
        return linear + bend


@torch.no_grad()
def start_quantiser(quantiser: Quantiser, z: Tensor) -> None:
    """Closed form from sample latents f32 [N,d_z]: principal directions to even levels, least squares back.

    Directions are scaled so that ``tanh`` spreads a Gaussian evenly over [-1, 1] (a factor of about 0.86 on its
    standard deviation), and rotated together so that all dimensions carry alike.
    """
    mean = z.mean(0)
    _, scale, directions = torch.linalg.svd((z - mean).double(), full_matrices=False)
    deviation = scale / max(1, len(z) - 1) ** 0.5
    # A rotation of whitened directions leaves them white; without it the last ones would hold mostly noise.
    turn = torch.linalg.qr(torch.randn(quantiser.dims, quantiser.dims, generator=torch.Generator().manual_seed(0)))[0]
    # There may be fewer directions than codes, and directions in which nothing varies.
    telling = directions[deviation > 1e-4 * deviation[0]][: quantiser.dims]
    kept = telling / deviation[: len(telling), None]
    weight = 0.86 * turn[:, : len(kept)].double() @ kept * (quantiser.dims / len(kept)) ** 0.5
    quantiser.down.linear.weight.copy_(weight)
    quantiser.down.linear.bias.copy_(-(weight @ mean.double()))
    x = to_values(quantiser.codes(z[None])[0], quantiser.levels).double()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    gram = design.T @ design + 1e-6 * len(x) * torch.eye(design.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, design.T @ z.double())
    quantiser.up.linear.weight.copy_(solution[:-1].T)
    quantiser.up.linear.bias.copy_(solution[-1])


def fit_quantiser(quantiser: Quantiser, z: Tensor, steps: int) -> None:
    """Bring codes and latents together before an LLM is asked: AdamW on ``1 - cos(q(z) - m, z - m)``, all unit vectors.

    Without the mean direction m, which most of a plain cosine is about. On latents of a trained encoder 16 codes of 4
    levels name the same token as the latent itself for 4 % after the closed form, and 25 % after 1,200 steps of this.

    Args:
        quantiser: on the CPU, behind ``start_quantiser``.
        z: f32 [N,d_z].
        steps: 0 does nothing.
    """
    if not steps:
        return
    optimizer = torch.optim.AdamW(quantiser.parameters(), lr=FIT_RATE, weight_decay=0.0)
    draw = torch.Generator().manual_seed(0)
    mean = F.normalize(z, dim=-1).mean(0)
    everywhere = torch.ones(1, dtype=torch.bool)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = FIT_RATE * (1 - step / steps)
        part = z[torch.randint(len(z), (min(FIT_BATCH, len(z)),), generator=draw)][None]
        found = quantiser(part, everywhere)
        apart = 1 - F.cosine_similarity(F.normalize(found, dim=-1) - mean, F.normalize(part, dim=-1) - mean, dim=-1)
        optimizer.zero_grad()
        apart.mean().backward()
        optimizer.step()
    optimizer.zero_grad()
