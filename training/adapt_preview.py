"""``latentwire adapt --dry-run``: parameters, memory and time before anything is fetched or trained."""

from __future__ import annotations

from ..core.console import print_json, print_table
from ..core.files import human_bytes
from ..models.configs import model_config
from .adapt import Request, plan
from .building import pick_device
from .config import Config
from .estimate import H100_BF16, REACHED, Estimate, estimate
from .speed import measure_peak


def preview(request: Request, as_json: bool) -> None:
    """Print what training this adapter would take; reads ``config.json`` of the LLM, no weights.

    Raises:
        ModelError: 3201, 3203, 3204 from the LLM; 3204, 3210, 3220, 3221 from the checkpoint.
        EnvironmentFault: 5010 the hub cannot be reached.
    """
    config = plan(request)
    found = estimate(config, model_config(request.llm))
    peak = measure_peak(pick_device(config.device), config.precision)
    if as_json:
        print_json({"llm": request.llm, **found.to_json(), "here_seconds": round(found.seconds(peak), 1)})
    else:
        print_table(["what", "value"], _rows(config, found, peak), title=request.llm)


def _rows(config: Config, found: Estimate, peak: float) -> list[list[object]]:
    share = 100 * found.trained_parameters / found.llm_parameters
    return [
        ["parameters of the LLM, frozen", f"{found.llm_parameters:,}"],
        ["parameters of the encoder, frozen", f"{found.encoder_parameters:,}"],
        ["parameters of the adapter, trained", f"{found.trained_parameters:,} ({share:.2f} % of the LLM)"],
        ["numbers in its table, stored", f"{found.stored_parameters:,}"],
        ["memory: weights", human_bytes(found.weights_bytes)],
        ["memory: optimiser", human_bytes(found.optimiser_bytes)],
        [f"memory: activations of {config.micro_batch} texts", human_bytes(found.activation_bytes)],
        ["memory: in all, at most", human_bytes(found.memory_bytes)],
        [f"work of {config.steps} steps of {config.batch} texts", f"{found.flops / 1e12:,.1f} TFLOP"],
        [f"time here, {peak / 1e12:.2f} TFLOP/s measured", _time(found.seconds(peak))],
        ["time on an H100, 989 TFLOP/s bf16", _time(found.seconds(H100_BF16))],
        ["", f"both at {100 * REACHED:.0f} % of the peak, without loading and measurements"],
    ]


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
