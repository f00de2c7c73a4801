"""Scales of activations for fp8, measured by NVIDIA ModelOpt on the model itself.

In: a model folder. Out: for each matrix of the decoder what one step of its input is worth. ModelOpt chooses what
is quantised (its default FP8 recipe: every linear layer but the head) and watches the largest magnitudes while
the model reads the built-in sentences; weights are quantised by ``quantize``. torch is imported when called.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

from ..core.console import message
from ..core.errors import ModelError
from ..core.extras import needs
from ..models.folder import ModelFolder
from .families import DecoderConfig, read_config
from .lora import Lora, merge
from .quantize import FP8_TOP, kind
from .reference import even_groups, sentence_prompts
from .sentences import SENTENCES
from .weights import sources

BATCH: Final = 16


def calibrate(
    llm: ModelFolder, prompts: Sequence[Sequence[int]] | None = None, lora: Lora | None = None
) -> dict[str, float]:
    """Graph name of each quantised matrix -> scale of its input: largest magnitude seen / 448.

    Args:
        llm: folder that transformers can load.
        prompts: token ids to calibrate on; None: the built-in sentences.
        lora: changes its weights.

    Raises:
        EnvironmentFault: 5011 ModelOpt, torch or transformers is not installed.
        ModelError: 3206 an input was never seen, or was not finite.
    """
    with needs("fp8"), _quiet():
        import torch
        from modelopt.torch import quantization
        from transformers import AutoModelForCausalLM

    config = read_config(llm.config, str(llm.path))
    given = prompts or sentence_prompts(llm.tokenizer_path, config.bos, len(SENTENCES))
    message(f"export: calibrating fp8 on {len(given)} prompts")
    # Groups of one length: no padding, whose activations nobody will ever see.
    ordered = even_groups(given, BATCH)

    def feed(model: Any) -> None:
        for i in range(0, len(ordered), BATCH):
            model(torch.tensor(ordered[i : i + BATCH]), use_cache=False)

    with _quiet(), torch.no_grad():
        model = merge(AutoModelForCausalLM.from_pretrained(llm.path, dtype="auto").eval(), lora)
        quantization.quantize(model, quantization.FP8_DEFAULT_CFG, forward_loop=feed)
    largest = {
        name: float(module.amax)
        for name, module in model.named_modules()
        if name.endswith(".input_quantizer") and module.is_enabled and module.amax is not None
    }
    return read_scales(config, largest)


def read_scales(config: DecoderConfig, largest: Mapping[str, float]) -> dict[str, float]:
    """Scales by graph name.

    Args:
        config: names the decoder's matrices.
        largest: magnitudes by quantiser, as ModelOpt names it: ``<module>.input_quantizer``.

    Raises:
        ModelError: 3206 as ``calibrate``.
    """
    scales = {}
    for name, source in sources(config).items():
        if kind(name, tied=config.tied) != "matrix":
            continue
        module = f"model.{source.key.removesuffix('.weight')}.input_quantizer"
        seen = largest.get(module, 0.0)
        if not 0 < seen < float("inf"):
            raise ModelError(
                3206,
                "calibration found no usable magnitude",
                where=module,
                expected=f"expected a positive number, got {largest.get(module)}",
                fix="calibrate on more text, or choose another precision",
            )
        scales[name] = seen / FP8_TOP
    return scales


@contextmanager
def _quiet() -> Iterator[None]:
    """ModelOpt prints what it inserts, and warns of versions and of extensions that only a GPU would need."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
