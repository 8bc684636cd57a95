"""The NeMo Framework Launcher with the stage ``axpo``:

    python launcher_scripts/main.py launcher_scripts_path=/opt/NeMo-Framework-Launcher/launcher_scripts \
        stages=[axpo] axpo=qwen3_vl/8b base_results_dir=/results container_mounts=[/lustre]

It is the launcher's own ``main.py``, found at ``launcher_scripts_path``, with our stage class in its table and our ``conf/axpo`` on
Hydra's search path; every other argument means what it means there. NEMO_LAUNCHER_DEBUG=1 writes the job and does not
queue it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import hydra

ROOT = Path(__file__).resolve().parents[1]
_PATH, _STAGE = "launcher_scripts_path=", "axpo="
_DEFAULT = "qwen3_vl/8b"


def main(arguments: Sequence[str]) -> None:
    """Composes the launcher's config with our stage and runs the stages that it names."""
    launcher = _launcher_path(arguments)
    sys.path[:0] = [str(launcher), str(ROOT)]
    upstream = load_upstream(launcher)
    from nemo_axpo.aligner.launcher_stage import register_stage
    from nemo_axpo.launcher.resolvers import register_resolvers

    register_stage(upstream.STR2STAGECLASS)
    register_resolvers()
    sys.argv[1:] = with_stage(arguments)
    hydra.main(config_path=str(launcher / "conf"), config_name="config", version_base="1.2")(
        upstream.main.__wrapped__
    )()


def with_stage(arguments: Sequence[str]) -> list[str]:
    """The launcher's arguments and what makes it know the stage: our directory, the choice, and its name."""
    choices = [word.removeprefix(_STAGE) for word in arguments if word.startswith(_STAGE)]
    choice = choices[-1] if choices else _DEFAULT
    kept = [word for word in arguments if not word.startswith(_STAGE)]
    return [*kept, f"hydra.searchpath=[file://{ROOT / 'conf'}]", f"+axpo={choice}", f"+axpo_config={choice}"]


def load_upstream(launcher: Path) -> ModuleType:
    """The launcher's ``main.py`` as a module of another name, as this file is called main too."""
    spec = importlib.util.spec_from_file_location("nemo_launcher_main", launcher / "main.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _launcher_path(arguments: Sequence[str]) -> Path:
    paths = [word.removeprefix(_PATH) for word in arguments if word.startswith(_PATH)]
    path = Path(paths[-1]) if paths else None
    if path is None or not (path / "nemo_launcher").is_dir():
        sys.exit(
            f"main.py: {_PATH}DIR must be launcher_scripts of a checkout of NeMo-Framework-Launcher; got {path}: "
            "git clone https://github.com/NVIDIA/NeMo-Framework-Launcher, or use `nemo-axpo submit`, which needs none"
        )
    return path.resolve()


if __name__ == "__main__":
    main(sys.argv[1:])
