# The trainer: NVIDIA's NeMo container with this package. torch, CUDA, NCCL, Transformer Engine and apex stay the container's.
# Not built yet: containers/README.md says what was checked instead.
ARG NEMO_IMAGE
# hadolint ignore=DL3006
FROM ${NEMO_IMAGE}

ARG TRANSFORMERS
ARG MEGATRON_CORE
ARG NEMO_ALIGNER
ARG JSONLINES

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/nemo_axpo

# Our pins without what would replace the container's own builds; --no-deps, so that nothing else can. NVIDIA's images set
# PIP_CONSTRAINT to versions of their own, which would refuse ours.
COPY requirements/cpu.txt containers/kept_by_the_image.txt /tmp/
RUN unset PIP_CONSTRAINT \
    && kept=$(grep -vE '^(#|$)' /tmp/kept_by_the_image.txt | paste -sd'|') \
    && grep -vE '^(#|$)' /tmp/cpu.txt | grep -vE "^(${kept})==" > /tmp/ours.txt \
    && python3 -m pip install --no-cache-dir --no-deps -r /tmp/ours.txt \
    && python3 -m pip install --no-cache-dir --no-deps \
        "transformers==${TRANSFORMERS}" "megatron-core==${MEGATRON_CORE}" \
        "nemo-aligner==${NEMO_ALIGNER}" "jsonlines==${JSONLINES}" \
    && rm /tmp/cpu.txt /tmp/kept_by_the_image.txt /tmp/ours.txt

COPY . /opt/nemo_axpo
RUN unset PIP_CONSTRAINT \
    && python3 -m pip install --no-cache-dir --no-deps --no-build-isolation -e /opt/nemo_axpo \
    && python3 containers/smoke.py --no-steps
