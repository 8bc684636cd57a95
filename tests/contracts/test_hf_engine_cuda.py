"""The contract of the embedded engine on a GPU, in float32 without TF32."""

from __future__ import annotations

import pytest
import torch
from engine_suite import EngineContract

from nemo_axpo.engines.hf.engine import HfEngine

pytestmark = pytest.mark.gpu


class TestHfEngineOnCuda(EngineContract):
    @pytest.fixture(autouse=True)
    def exact_products(self, monkeypatch):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    @pytest.fixture
    def make_engine(self):
        return lambda config, store, **options: HfEngine(config, image_store=store, device="cuda", **options)
