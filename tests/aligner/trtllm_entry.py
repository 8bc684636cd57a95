"""The entry script on servers of ``trtllm_protocol_server.py``: weights are handed over in files instead of GPU memory.

    torchrun … trtllm_entry.py DIRECTORY KEY=VALUE…       one directory for the handles of each rank
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

from shared_tensors import shared_file_device

from nemo_axpo.aligner.train_qwen3_vl_axpo_actor import main
from nemo_axpo.engines.trtllm import build

if __name__ == "__main__":
    handles = Path(sys.argv.pop(1)) / os.environ["RANK"]
    handles.mkdir(parents=True, exist_ok=True)
    devices = (shared_file_device(handles),)
    build.weight_devices = lambda: devices
    main()
