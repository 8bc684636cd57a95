"""An environment that cannot run NeMo-Aligner's trainers says what is missing and the line that installs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nemo_axpo.extras import has_extra


@pytest.mark.skipif(has_extra("nemo"), reason="NeMo is installed")
def test_a_nemo_without_its_nlp_collection_is_named(tmp_path):
    """As NeMo 2.5 and newer, which NGC containers have: the package is there, and not what is imported of it."""
    package = tmp_path / "nemo" / "collections"
    package.mkdir(parents=True)
    for directory in (package.parent, package):
        (directory / "__init__.py").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from nemo_axpo.aligner import environment\n"
        "from nemo_axpo.errors import MissingExtraError\n"
        "try: environment.prepare()\n"
        "except MissingExtraError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "nemo-toolkit 2.4.1" in said and "got No module named" in said
    assert "pip install 'nemo_axpo[nemo]'" in said and "loop=native" in said
