"""A job as a Helm chart: the manifest of ``kubernetes`` with the cluster's words as values.

    k8s_template/Chart.yaml
    k8s_template/values.yaml             images, volumes, adapters, secrets, under the names of the launcher's k8s.yaml
    k8s_template/templates/axpo.yaml     shm_size of the manifest → {{ .Values.shm_size | quote }}
    k8s_template/config/STAGE.yaml       the stage's file → {{ .Files.Get "config/STAGE.yaml" | toJson }}

There is no second description of the pods: the builder runs on words that know where they stand among the values, and the
YAML writer puts that place instead of the word. What a word decides (whether there is a volume at all) is fixed in the template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import yaml

from nemo_axpo.config.schema import Section
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.launcher.dns_names import MAX_NAME, is_job_name
from nemo_axpo.launcher.kubernetes import KubernetesJob, PlainDumper, documents, yaml_text
from nemo_axpo.launcher.kubernetes_cluster import KubernetesConfig

CHART, CHART_VERSION = "nemo-axpo", "0.1.0"
_RELEASE = "<<.Release.Name>>"
_EXPRESSION = re.compile(r"<<(.+?)>>")
_VALUES_HEADER = """\
# Values of templates/axpo.yaml, in the key names of the launcher's conf/cluster/k8s.yaml and of nemo_axpo's
# launcher/kubernetes_cluster.py. Another value here takes effect with helm; a further key needs the launcher again.
"""


class ChartValue(str):
    """A word that stands at ``expression`` among a chart's values."""

    expression: str

    def __new__(cls, word: str, expression: str) -> Self:
        """The word itself, as far as the builder can tell."""
        value = super().__new__(cls, word)
        value.expression = expression
        return value


class _TemplateDumper(PlainDumper):
    """Writes the place of a value instead of the value."""


_TemplateDumper.add_representer(
    ChartValue, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", f"<<{value.expression}>>")
)


def write_chart(job: KubernetesJob, cluster: KubernetesConfig, *, folder: Path, config_file: Path) -> None:
    """The chart in ``folder``. ``config_file``: the stage's file; ``job.name``: what Helm will call the release.

    ConfigError for a name that Kubernetes does not take, and for what it would not do as the config says.
    """
    if not is_job_name(job.name):
        rule = f"a release begins with a letter and has at most {MAX_NAME} small letters, digits and hyphens"
        cure = "change run.name of the stage: axpo.run.name=..."
        raise ConfigError(rule_message(rule, got=job.name, cure=cure))
    files = chart_files(job, cluster, config_name=config_file.name)
    files[f"config/{config_file.name}"] = config_file.read_text(encoding="utf-8")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def chart_files(job: KubernetesJob, cluster: KubernetesConfig, *, config_name: str) -> dict[str, str]:
    """Text by file name, without the stage's own file ``config/CONFIG_NAME``."""
    about = {"apiVersion": "v2", "name": CHART, "version": CHART_VERSION,
             "description": "AXPO under NeMo-Aligner: a PyTorchJob and its generation servers"}  # fmt: skip
    cluster = cluster.model_copy(update={"namespace": None})  # Helm's own: helm install --namespace
    values = cluster.model_dump(mode="json", exclude_none=True)
    return {
        "Chart.yaml": yaml.safe_dump(about, sort_keys=False),
        "values.yaml": _VALUES_HEADER + yaml.safe_dump(values, sort_keys=False),
        "templates/axpo.yaml": _template(job, cluster, config_name=config_name),
    }


def _template(job: KubernetesJob, cluster: KubernetesConfig, *, config_name: str) -> str:
    stage = ChartValue("", f'.Files.Get "config/{config_name}" | toJson')
    job = replace(job, name=_RELEASE, stage=stage)
    text = yaml_text(documents(job, _placed(cluster, at=".Values")), dumper=_TemplateDumper)
    return _EXPRESSION.sub(r"{{ \1 }}", text)


def _placed(value: Any, *, at: str) -> Any:
    """``value`` with a ChartValue for every word in it; ``at``: where it stands."""
    if isinstance(value, str):
        return ChartValue(value, f"{at} | quote")
    if isinstance(value, Section):
        return value.model_copy(update={name: _placed(getattr(value, name), at=f"{at}.{name}")
                                        for name in type(value).model_fields})  # fmt: skip
    if isinstance(value, Mapping):
        return {name: _placed(entry, at=f'(index {at} "{name}")') for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_placed(entry, at=f"(index {at} {number})") for number, entry in enumerate(value))
    return value
