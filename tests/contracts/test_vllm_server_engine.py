"""vLLM servers over HTTP: the shared contract, with weights in shared memory, by broadcasts and as files.

Runs in vLLM's own environment (launcher_scripts/test_vllm.sh); the server is vLLM itself, on a CPU.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from engine_suite import MAX_MODEL_LEN, EngineContract, run
from picture_store import PictureStore
from served_checkpoint import write_checkpoint_files
from tiny_engine_model import BANNED, IM_END, request, tiny_config, tiny_model
from vllm_server_process import SERVED_MODEL, VllmServerProcess

from nemo_axpo.config.schema import SyncConfig
from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.build import ServerOptions
from nemo_axpo.engines.fleet.client import ServedPolicy
from nemo_axpo.engines.fleet.fleet import FleetSettings
from nemo_axpo.engines.vllm_server.build import build_vllm_server
from nemo_axpo.engines.vllm_server.client import VllmClient
from nemo_axpo.errors import ConfigError
from nemo_axpo.types import Completion

pytestmark = pytest.mark.vllm

HEAD_DIM = 32
"""The smallest of vLLM's attention kernel for CPUs."""
PATIENCE = FleetSettings(request_timeout_s=120, health_every_s=0.3, max_outage_s=30)


def contract_config():
    return tiny_config(head_dim=HEAD_DIM)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint_files(tmp_path_factory.mktemp("vllm_server") / "model", config=contract_config())


@pytest.fixture(scope="module")
def url(checkpoint):
    """A server of the contract's model; ends with the module."""
    with VllmServerProcess(checkpoint, log=checkpoint.parent / "server.log") as server:
        server.wait_until_up()
        yield server.url


class ProbedPictures(PictureStore):
    """Takes the pictures of the start-up probes too."""

    def add(self, picture, **size):
        if isinstance(picture, str):
            return super().add(picture, **size)
        image_id = self._store.add(picture)
        self._ids[image_id] = image_id
        return image_id


@pytest.fixture
def pictures():
    store = ProbedPictures()
    for number, (height, width) in enumerate([(4, 4), (2, 6), (6, 2), (4, 8), (2, 2)]):
        store.add(f"i{number}", height=height, width=width)
    return store


@pytest.fixture
def make_fleet(url, tmp_path):
    def make(config, store, *, transport="shared_memory", max_num_seqs=None, urls=(url,), **options):
        sync = SyncConfig(transport=transport, bucket_mib=1, directory=str(tmp_path), timeout_s=60)
        servers = ServerOptions(tuple(urls), served_model=SERVED_MODEL, settings=PATIENCE, sync=sync)
        return build_vllm_server(config, image_store=store, servers=servers, device="cpu", **options)

    return make


class TestVllmServerEngine(EngineContract):
    @pytest.fixture
    def config(self):
        return contract_config()

    @pytest.fixture
    def store(self, pictures):
        return pictures

    @pytest.fixture
    def make_engine(self, make_fleet):
        return make_fleet

    @pytest.mark.parametrize("transport", ["shared_memory", "broadcast", "disk"])
    def test_weights_by_every_transport(self, make_engine, config, store, transport):
        model = tiny_model(config, seed=2)
        engine = self.build(make_engine, config, model, store, transport=transport)
        requests = [request(store.render(*range(9), "i1", 7), seed=seed) for seed in range(2)]
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)
        asyncio.run(engine.close())


def make_client(url, store, *, model=None) -> VllmClient:
    probes = [request(store.render(1, 2, 3), max_new_tokens=2), request(store.render(1, "i0", 2), max_new_tokens=2)]
    return VllmClient(
        url, ServedPolicy(DataUrls(store.model_image), contract_config().image_token_id, (IM_END,), BANNED, probes, model)
    )


class TestClient:
    def test_a_server_that_is_not_there(self, pictures):
        with pytest.raises(ConfigError, match="(?s)must name vLLM servers.*127.0.0.1:9.*vllm_server.launch"):
            make_client("http://127.0.0.1:9", pictures).check()

    def test_another_model(self, url, pictures):
        with pytest.raises(ConfigError, match=r"must serve the model.*\['contract'\].*'Qwen3-VL-8B'"):
            make_client(url, pictures, model="Qwen3-VL-8B").check()

    def test_a_processor_of_its_own_is_noticed(self, url, pictures):
        """Our placeholders are those of another picture than the one sent: the prompt that comes back is not ours."""
        client = make_client(url, pictures)
        client.check()
        one = request(pictures.render(1, "i0", 2))
        wrong = replace(one, prompt=replace(one.prompt, image_ids=("i3",)))
        with pytest.raises(EngineError, match="8 placeholders for image 0, our image processor makes 4"):
            asyncio.run(client.generate(wrong, timeout_s=30))

    def test_the_version_is_none_of_ours_during_an_update(self, url, pictures, make_fleet):
        config = contract_config()
        fleet = make_fleet(
            config, pictures, stop_token_ids=(IM_END,), banned_token_ids=BANNED, max_model_len=MAX_MODEL_LEN
        )
        tensors = tiny_model(config).state_dict()
        fleet.load_weights(tensors.items(), policy_version=7)
        client = make_client(url, pictures)
        assert client.health().policy_version == 7
        client.start_update({"transport": "shared_memory"})
        assert client.health().policy_version == -1
        with pytest.raises(EngineError, match="did not answer within 1 s"):  # paused: nothing is sampled
            asyncio.run(client.generate(request(pictures.render(1, 2)), timeout_s=1))
        fleet.load_weights(tensors.items(), policy_version=8)
        assert client.health().policy_version == 8
        assert asyncio.run(client.generate(request(pictures.render(1, 2)), timeout_s=30)).policy_version == 8


class TestKilledServer:
    """One of two servers is killed while it samples, started again, and given weights."""

    def test_no_request_is_lost_and_a_restarted_server_waits_for_weights(self, url, checkpoint, pictures, make_fleet):
        config = contract_config()
        model, other = tiny_model(config), tiny_model(config, seed=1)
        with VllmServerProcess(checkpoint, log=checkpoint.parent / "second.log") as second:
            second.wait_until_up()
            ids = {"stop_token_ids": (IM_END,), "banned_token_ids": BANNED}
            fleet = make_fleet(config, pictures, urls=(url, second.url), max_model_len=MAX_MODEL_LEN, **ids)
            fleet.load_weights(model.state_dict().items(), policy_version=5)
            requests = [
                request(pictures.render(*range(seed, seed + 9), "i0", 7), seed=seed, max_new_tokens=120)
                for seed in range(24)
            ]

            completions = asyncio.run(self.serve_while_killed(fleet, requests, second))
            EngineContract().assert_parity(requests, completions, model=model, store=pictures)
            survivor, killed = fleet.take_server_reports()
            assert (survivor.is_up, survivor.num_failures, killed.is_up, killed.num_taken_out) == (True, 0, False, 1)
            assert killed.num_failures > 0 and killed.num_lost == survivor.num_lost == 0

            second.start()
            second.wait_until_up()
            assert make_client(second.url, pictures).health().policy_version == -1
            assert {c.policy_version for c in run(fleet, *requests)} == {5}
            assert set(fleet.by_server()) == {url}

            fleet.load_weights(other.state_dict().items(), policy_version=6)
            assert set(fleet.by_server()) == {url, second.url}
            for engine in fleet.by_server().values():
                completions = run(engine, *requests[:2])
                assert {c.policy_version for c in completions} == {6}
                EngineContract().assert_parity(requests[:2], completions, model=other, store=pictures)
            asyncio.run(fleet.close())

    async def serve_while_killed(self, fleet, requests, server: VllmServerProcess) -> list[Completion]:
        tasks = [asyncio.create_task(fleet.generate(one)) for one in requests]
        while not fleet._router.in_flight[server.url]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        server.kill()
        return await asyncio.gather(*tasks)
