"""Starts a vLLM server as this project needs it:

    python -m nemo_axpo.engines.vllm_server.launch --checkpoint DIR --port 8000 [vLLM's own arguments]

It becomes vLLM's own server process, with the endpoints for token ids and for weights. These let whoever reaches the port
replace the weights: keep it inside the cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_axpo.engines.vllm.settings import VllmSettings, engine_arguments


def server_command(arguments: Mapping[str, Any], *, host: str, port: int, extra: Sequence[str] = ()) -> list[str]:
    """The command line of ``arguments`` (see ``engine_arguments``); ``extra`` comes last and so wins."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", host, "--port", str(port)]
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            command += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return [*command, "--enable-scale-out", *extra]


def server_environment(device: str) -> dict[str, str]:
    """This process's environment with what vLLM reads from there alone."""
    ours = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}  # the first: endpoints for weights
    if device == "cpu":
        ours["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return {**os.environ, **ours}


def main(arguments: Sequence[str] | None = None) -> None:
    """Becomes the server."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="directory of the policy; only its configuration is read")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--max-model-len", type=int, default=20_480)
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--kv-cache-mib", type=int)
    options, extra = parser.parse_known_args(arguments)
    settings = VllmSettings(options.gpu_memory_utilization, options.kv_cache_mib)
    engine = engine_arguments(
        settings,
        checkpoint=options.checkpoint,
        max_num_seqs=options.max_num_seqs,
        max_model_len=options.max_model_len,
        dtype=options.dtype,
        device=options.device,
    )
    command = server_command(engine, host=options.host, port=options.port, extra=extra)
    os.execvpe(command[0], command, server_environment(options.device))


if __name__ == "__main__":
    main()
