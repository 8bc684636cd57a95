"""The contract against a running ``trtllm-serve`` that serves ``served_checkpoint.py``: launcher_scripts/test_trtllm.sh.

Where there is no GPU the weights go through files, which only the local protocol server takes.
"""

from __future__ import annotations

import pytest
import torch
from engine_suite import EngineContract
from picture_store import PictureStore
from served_checkpoint import served_config
from shared_tensors import shared_file_device
from tiny_engine_model import tiny_model
from trtllm_fleet import make_fleet

from nemo_axpo.engines.fleet.build import check_servers
from nemo_axpo.engines.trtllm.pusher import cuda_devices

pytestmark = pytest.mark.trtllm


class TestTrtllmServer(EngineContract):
    @pytest.fixture(autouse=True)
    def use_tolerance(self, request):
        self.tolerance = request.config.getoption("--tolerance")

    @pytest.fixture
    def config(self):
        return served_config()

    @pytest.fixture
    def model(self, config):
        return tiny_model(config)

    @pytest.fixture
    def store(self):
        store = PictureStore()
        for number, (height, width) in enumerate([(4, 4), (2, 6), (6, 2), (4, 8), (2, 2)]):
            store.add(f"i{number}", height=height, width=width)
        return store

    @pytest.fixture
    def make_engine(self, server_url, tmp_path):
        devices = cuda_devices() if torch.cuda.is_available() else [shared_file_device(tmp_path)]

        def make(config, store, **options):
            fleet = make_fleet([server_url], config, store, devices=devices, **options)
            check_servers([server.client for server in fleet._servers.values()])
            return fleet

        return make

    def test_memory_is_released_and_resumed(self, engine, model, store):
        (server,) = engine._servers.values()
        server.client.release_memory()
        server.client.resume_memory()
        engine.load_weights(model.state_dict().items(), policy_version=4)
        self.test_image_in_a_later_turn(engine, model, store)
