"""Against NeMo-Aligner's bare wheel: the interface is implemented, the trainer's signature is its, registration works."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import nemo_aligner
import pytest
from nemo_aligner.models.alignable_interface import AlignableGenerativeInterface
from omegaconf import OmegaConf

from nemo_axpo import aligner
from nemo_axpo.aligner.actor_model import MegatronQwen3VLAXPOActorModel
from nemo_axpo.aligner.registry import AXPO, get_algorithm, register_algorithm
from nemo_axpo.cli import main
from nemo_axpo.config.checks import config_problems
from nemo_axpo.errors import MissingExtraError
from nemo_axpo.extras import has_extra
from nemo_axpo.launcher.nemo_keys import run_from_nemo
from nemo_axpo.launcher.resolvers import register_resolvers

WHEEL = Path(nemo_aligner.__file__).parent
TRAINER = Path(aligner.__file__).parent / "trainer.py"


def class_of(path: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def signatures(path: Path, name: str) -> dict[str, list[str]]:
    """Arguments of every method, as written: importing the trainer takes NeMo."""
    methods = (node for node in class_of(path, name).body if isinstance(node, ast.FunctionDef))
    return {node.name: [argument.arg for argument in node.args.args] for node in methods}


def test_the_wheel_is_the_pinned_one():
    assert importlib.metadata.version("nemo-aligner") == "0.7.0"


def test_the_actor_implements_the_whole_interface():
    assert issubclass(MegatronQwen3VLAXPOActorModel, AlignableGenerativeInterface)
    assert not MegatronQwen3VLAXPOActorModel.__abstractmethods__
    assert len(AlignableGenerativeInterface.__abstractmethods__) == 8
    for name in AlignableGenerativeInterface.__abstractmethods__ - {"infer"}:
        own, theirs = (getattr(cls, name) for cls in (MegatronQwen3VLAXPOActorModel, AlignableGenerativeInterface))
        assert [*inspect.signature(own).parameters] == [*inspect.signature(theirs).parameters], name


def test_the_trainer_is_a_reinforce_trainer_with_its_signatures():
    (base,) = class_of(TRAINER, "AXPOTrainer").bases
    assert base.id == "ReinforceTrainer"
    own, theirs = signatures(TRAINER, "AXPOTrainer"), signatures(WHEEL / "algorithms/reinforce.py", "ReinforceTrainer")
    assert len(theirs["__init__"]) == 13, "self and twelve arguments"
    assert {"_run_inference", "generate_reinforce_data", "load_state_dict", "run_training"} <= own.keys()
    assert "fit" not in own, "fit is NeMo-Aligner's"
    for name in own.keys() & theirs.keys():
        assert own[name] == theirs[name], name


def test_every_attribute_that_the_trainer_asks_of_its_model_is_there():
    source = (WHEEL / "algorithms/reinforce.py").read_text(encoding="utf-8")
    trainer = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "ReinforceTrainer")
    asked = {
        node.attr
        for node in ast.walk(trainer)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.model"
    }
    has = set(dir(MegatronQwen3VLAXPOActorModel)) | {"tokenizer"}  # set in __init__
    assert "infer" in asked and asked <= has


def test_registering_makes_the_module_importable_and_imports_no_nemo():
    code = (
        "import sys, nemo_axpo.aligner as a; a.register(); a.register(); import nemo_aligner.algorithms.axpo as m; "
        "from nemo_aligner.algorithms import axpo; assert axpo is m and 'AXPOTrainer' in m.__all__; "
        "from nemo_aligner.algorithms.axpo import MegatronQwen3VLAXPOActorModel as actor; "
        "print(actor.__module__, 'nemo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nemo_axpo.aligner.actor_model", "False"]


@pytest.mark.skipif(has_extra("nemo"), reason="NeMo is installed")
def test_the_trainer_without_nemo_names_the_extra():
    aligner.register()
    module = importlib.import_module("nemo_aligner.algorithms.axpo")
    for name, error, message in (
        ("AXPOTrainer", MissingExtraError, r"pip install 'nemo_axpo\[nemo\]'"),
        ("NoSuchTrainer", AttributeError, "it has AXPOTrainer"),
    ):
        with pytest.raises(error, match=message):
            getattr(module, name)


@pytest.mark.skipif(has_extra("nemo"), reason="NeMo is installed")
def test_the_command_without_nemo_names_the_extra_before_it_writes(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    status = main(["train", "loop=aligner", f"model.path={tmp_path}", "--output-dir", str(tmp_path / "run")])
    assert status != 0 and "pip install 'nemo_axpo[nemo]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_registry_knows_axpo_and_refuses_what_it_cannot():
    assert get_algorithm("axpo") is AXPO and AXPO.load("actor") is MegatronQwen3VLAXPOActorModel
    assert callable(AXPO.load("entry")) and AXPO.config.is_file()
    with pytest.raises(ValueError, match="must be one of axpo; got 'ppo'"):
        get_algorithm("ppo")
    with pytest.raises(ValueError, match="registered once; got 'axpo'"):
        register_algorithm("axpo", trainer="a:b", actor="a:b", entry="a:b", config=AXPO.config)


def entry_config(*overrides: str):
    register_resolvers()
    composed = OmegaConf.merge(OmegaConf.load(AXPO.config), OmegaConf.from_dotlist(list(overrides)))
    return OmegaConf.to_container(composed, resolve=True)


def test_the_entry_config_is_read_to_the_last_key_and_can_run_on_its_ranks():
    run = run_from_nemo(entry_config("model.axpo.engine.servers=[http://host:8000,http://host:8001]"))
    assert run.resume and run.config.algorithm.name == "axpo" and run.config.actor.num_minibatches == 4
    assert not config_problems(run.config, world_size=8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.axpo.trt_llm.reshard=True", "reshard must be false"),
        ("trainer.axpo.trt_llm.unload_engine_train=True", "unload_engine_train must be false"),
        ("trainer.axpo.num_rollout_per_prompt=4", "num_rollouts_per_prompt"),
    ],
)
def test_what_cannot_be_honoured_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        run_from_nemo(entry_config(override))


def test_trt_llm_is_chosen_with_nemo_aligners_key():
    urls = ["http://a:8000", "http://b:8000"]
    keys = ("trainer.axpo.trt_llm.enable=True", f"model.axpo.engine.servers=[{','.join(urls)}]")
    config = run_from_nemo(entry_config(*keys)).config
    assert config.engine.name == "trtllm" and list(config.engine.servers) == urls
