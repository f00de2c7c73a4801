"""The closed-form start of a trained model: same shapes, same LLMs, same task rows, nothing learned in between."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from ...core.errors import ModelError
from ..adapter import Adapter, LearnedAdapter, TableAdapter
from ..building import begin_adapter
from ..encoder import EncoderFromEmbedLayer
from ..model import LatentModel, build_adapter, build_encoder, key
from ..start import start_encoder

_made: WeakKeyDictionary[LatentModel, LatentModel] = WeakKeyDictionary()


def untrained(model: LatentModel) -> LatentModel:
    """A twin of ``model`` as it was before its first step, on the same frozen LLMs; made once for each model.

    Document frequencies and task rows are those of ``model``: the first are counted, not learned, and the second are
    the same in every row that is compared.

    Raises:
        ModelError: 3210 there is no closed form for this encoder or adapter.
    """
    if model not in _made:
        _made[model] = _make(model)
    return _made[model]


@torch.no_grad()
def _make(model: LatentModel) -> LatentModel:
    # A quantiser and a calibration are fitted to texts, and no row needs them here; features are learned.
    config = replace(model.config, fsq_profile=0, calibration="none", features=())
    if config.encoder_type != "embed_layer":
        raise ModelError(3210, "no closed-form start for this encoder", where=config.encoder_type)
    encoder = build_encoder(config)
    assert isinstance(encoder, EncoderFromEmbedLayer)
    adapters: dict[str, torch.nn.Module] = {}
    for llm in model.llms:
        trained = model.adapter(llm)
        vocab, width = llm.embedding.shape
        own = build_adapter(config, vocab, width, isinstance(trained, TableAdapter))
        if isinstance(trained, TableAdapter) and isinstance(own, TableAdapter):
            own.entries.copy_(trained.entries)  # the texts that chose them are not here
        if isinstance(trained, LearnedAdapter) and isinstance(own, LearnedAdapter):
            own.llm_embedding = trained.llm_embedding  # the LLM's own, hundreds of MB: shared
        adapters[key(llm.name)] = own
    twin = LatentModel(config, encoder, adapters, model.llms, model.source)
    start_encoder(encoder, model.source, model.encoder.get_buffer("idf").cpu())
    for llm in model.llms:
        begin_adapter(twin, llm, [])
        old, new = model.adapter(llm), twin.adapter(llm)
        assert isinstance(old, (Adapter, LearnedAdapter))
        assert isinstance(new, (Adapter, LearnedAdapter))
        new.task.load_state_dict(old.task.state_dict())
    return twin.to(model.llms[0].model.device).eval()
