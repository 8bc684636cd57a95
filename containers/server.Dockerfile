# A generation server: vLLM's own image with this package for the weights' receiver and the launch module. Not built yet.
ARG VLLM_IMAGE
# hadolint ignore=DL3006
FROM ${VLLM_IMAGE}

WORKDIR /opt/nemo_axpo
COPY . /opt/nemo_axpo
# The server imports engines/vllm, engines/vllm_server and weight_sync, which need torch and what vLLM brings.
RUN python3 -m pip install --no-cache-dir --no-deps --no-build-isolation -e /opt/nemo_axpo \
    && python3 -c "import nemo_axpo.engines.vllm_server.launch, nemo_axpo.weight_sync.receiver, nemo_axpo.launcher.serve_node"

ENTRYPOINT ["python3", "-m", "nemo_axpo.launcher.serve_node"]
