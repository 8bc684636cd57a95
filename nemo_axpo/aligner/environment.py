"""What NeMo-Aligner's modules need in order to be imported and to run beside megatron-core 0.16.

* ``nemo_aligner.utils.trt_llm`` imports ``tensorrt_llm`` without asking: where that is absent, a stand-in takes its place
  whose class refuses to be built, as the original does.
* Its collectives and timers ask CUDA for the current device; without CUDA they see the actor's CPU shim.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings

from nemo_axpo.actors import cpu_shim
from nemo_axpo.errors import MissingExtraError, rule_message
from nemo_axpo.extras import require_extra

_TRT_LLM = "nemo_aligner.utils.trt_llm"
_MODULES = ("nemo_aligner.algorithms.reinforce", "nemo_aligner.utils.train_script_utils")


def prepare() -> None:
    """Makes NeMo-Aligner's trainers importable; may be called again.

    MissingExtraError without the extra nemo, or with a NeMo that lacks what they import.
    """
    require_extra("nemo")
    cpu_shim.install()
    _stand_in_for_trt_llm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NeMo's own dependencies, hundreds of lines
        for name in _MODULES:
            _import(name)
    for package in ("nemo_aligner", "nemo.utils.timers"):
        cpu_shim.install_into(package)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:  # NeMo 2.5 and newer have no nemo.collections.nlp
        rule = "NeMo-Aligner's trainers need nemo-toolkit 2.4.1, the last with nemo.collections.nlp, and what it imports"
        cure = "pip install 'nemo_axpo[nemo]' in an environment of its own, or choose loop=native"
        raise MissingExtraError(rule_message(rule, got=error, cure=cure)) from error


class RefusedGeneration:
    """In the place of ``GPTGenerateTRTLLM`` where TensorRT-LLM is not installed."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        rule = "NeMo-Aligner's own TRT-LLM generation needs the package tensorrt_llm"
        cure = "set trainer.axpo.trt_llm.enable=False, or name servers of trtllm-serve in model.axpo.engine.servers"
        raise RuntimeError(rule_message(rule, got="it is not installed", cure=cure))


def _stand_in_for_trt_llm() -> None:
    if _TRT_LLM in sys.modules or importlib.util.find_spec("tensorrt_llm") is not None:
        return
    module = types.ModuleType(_TRT_LLM, "Stand-in: tensorrt_llm is not installed.")
    module.GPTGenerateTRTLLM = RefusedGeneration
    sys.modules[_TRT_LLM] = module
