"""The trtllm engine against a local server that speaks trtllm-serve's protocol and samples with the hf engine.

It is not TensorRT-LLM: see ``trtllm_protocol_server.py``.
"""

from __future__ import annotations

import asyncio

import pytest
from engine_suite import EngineContract, run
from picture_store import PictureStore, tiny_processor
from served_checkpoint import served_config, write_checkpoint
from server_processes import ServerProcess
from shared_tensors import shared_file_device
from tiny_engine_model import BANNED, IM_END, request, tiny_config, tiny_model
from trtllm_fleet import make_client, make_fleet

from nemo_axpo.data.images import ImageStore
from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.build import check_servers
from nemo_axpo.engines.fleet.client import served_policy
from nemo_axpo.engines.trtllm.client import TrtllmClient
from nemo_axpo.errors import ConfigError

SCRIPT = "trtllm_protocol_server.py"
IDS = {"stop_token_ids": (IM_END,), "banned_token_ids": BANNED}


@pytest.fixture(scope="module")
def server():
    with ServerProcess(SCRIPT) as server:
        yield server


@pytest.fixture
def pictures():
    store = PictureStore()
    for number, (height, width) in enumerate([(4, 4), (2, 6), (6, 2), (4, 8), (2, 2)]):
        store.add(f"i{number}", height=height, width=width)
    return store


class TestTrtllmEngine(EngineContract):
    @pytest.fixture
    def store(self, pictures):
        return pictures

    @pytest.fixture
    def make_engine(self, server, tmp_path):
        return lambda config, store, **options: make_fleet(
            [server.url], config, store, devices=[shared_file_device(tmp_path)], **options
        )

    def test_presence_penalty_counts_sampled_tokens_alone(self, engine, model, store):
        """TensorRT-LLM counts others too: refused."""
        with pytest.raises(ValueError, match="must be 0 for trtllm"):
            run(engine, request(store.render(1, 2), presence_penalty=1.5))


class TestCheck:
    def test_a_complete_server_passes(self, server, pictures):
        make_client(server.url, tiny_config(), pictures, **IDS).check()

    @pytest.mark.parametrize(
        "dialect,message",
        [
            ("no_prompt_ids", r"(?s)returns? what it sampled as ids.*no prompt token ids.*cannot be used for training"),
            (
                "no_token_ids",
                r"(?s)a choice must hold token_ids and their logprobs; got \['finish_reason'.*cannot be used",
            ),
            ("retokenises", r"(?s)must sample from exactly the prompt.*tokenised the prompt anew.*cannot be used"),
            ("half_size_images", r"(?s)got 1 placeholders for image 0, our image processor makes 4.*cannot be used"),
        ],
    )
    def test_a_version_that_cannot_be_used_says_why(self, pictures, dialect, message):
        with ServerProcess(SCRIPT, "--dialect", dialect) as server, pytest.raises(ConfigError, match=message) as raised:
            make_client(server.url, tiny_config(), pictures, **IDS).check()
        assert "local protocol server" in str(raised.value)

    def test_an_unreachable_server(self, pictures):
        with pytest.raises(ConfigError, match="(?s)engine.servers must name running.*127.0.0.1:9.*check host and port"):
            make_client("http://127.0.0.1:9", tiny_config(), pictures, **IDS).check()

    def test_another_model(self, server, pictures):
        with pytest.raises(ConfigError, match=r"must serve the model.*\['tiny-qwen3-vl'\].*'Qwen3-VL-8B'"):
            make_client(server.url, tiny_config(), pictures, model="Qwen3-VL-8B", **IDS).check()


class TestBuild:
    """What a config builds, but for CUDA's handles."""

    def clients(self, *urls: str):
        policy = served_policy(tiny_config(), image_store=ImageStore(tiny_processor()), **IDS)
        return [TrtllmClient(url, policy) for url in urls]

    def test_the_probes_of_a_start_pass_on_a_complete_server(self, server):
        check_servers(self.clients(server.url))

    def test_every_server_that_cannot_be_used_is_named(self, server):
        with pytest.raises(ConfigError) as raised:
            check_servers(self.clients("http://127.0.0.1:9", server.url, "http://127.0.0.1:7"))
        problems = str(raised.value).splitlines()
        assert len(problems) == 2 and "127.0.0.1:9" in problems[0] and "127.0.0.1:7" in problems[1]

    @pytest.mark.parametrize("dialect", ["retokenises", "half_size_images", "no_token_ids"])
    def test_the_probes_of_a_start_find_what_is_wrong(self, dialect):
        with ServerProcess(SCRIPT, "--dialect", dialect) as server, pytest.raises(ConfigError, match="cannot be used"):
            check_servers(self.clients(server.url))


class TestServedCheckpoint:
    """What ``launcher_scripts/test_trtllm.sh --write`` gives to a server."""

    def test_it_is_served(self, pictures, tmp_path):
        config = served_config()
        path = write_checkpoint(tmp_path / "checkpoint")
        with ServerProcess(SCRIPT, "--checkpoint", str(path)) as server:
            devices = [shared_file_device(tmp_path)]
            fleet = make_fleet([server.url], config, pictures, devices=devices, max_model_len=160, **IDS)
            model = tiny_model(config)
            fleet.load_weights(model.state_dict().items(), policy_version=1)
            EngineContract().test_image_in_a_later_turn(fleet, model, pictures)


class TestControl:
    def test_control_calls_are_signed(self, pictures):
        one = request(pictures.render(1, 2))
        with ServerProcess(SCRIPT, "--control-key", "secret") as server:
            client = make_client(server.url, tiny_config(), pictures, control_key="secret", **IDS)
            client.release_memory()
            with pytest.raises(EngineError, match="memory is released"):
                asyncio.run(client.generate(one, timeout_s=10))
            client.resume_memory()
            asyncio.run(client.generate(one, timeout_s=10))
            for key in (None, "wrong"):
                other = make_client(server.url, tiny_config(), pictures, control_key=key, **IDS)
                with pytest.raises(EngineError, match="401.*authentication"):
                    other.release_memory()

    def test_a_server_that_refuses_a_push_is_named(self, pictures, tmp_path):
        with ServerProcess(SCRIPT, "--control-key", "secret") as server:
            fleet = make_fleet(
                [server.url], tiny_config(), pictures, devices=[shared_file_device(tmp_path)], max_model_len=160, **IDS
            )
            with pytest.raises(EngineError, match="(?s)no generation server took the weights.*401"):
                fleet.load_weights(tiny_model(tiny_config()).state_dict().items(), policy_version=1)
            with pytest.raises(EngineError, match="load_weights"):
                run(fleet, request(pictures.render(1)))
