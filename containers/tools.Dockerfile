# A tool server: no GPU. The packages of the default environment with torch for CPUs, which imports of the package need.
ARG PYTHON_IMAGE
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# libseccomp is one of the sandbox's walls. Debian keeps no old versions, so there is nothing to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libseccomp2 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/nemo_axpo
COPY requirements/cpu.txt /tmp/cpu.txt
# torch alone from its own index, as in launcher_scripts/setup_env.sh; the other packages from PyPI.
RUN python3 -m pip install --no-cache-dir --no-deps --extra-index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' /tmp/cpu.txt)+cpu" \
    && grep -v '^torch==' /tmp/cpu.txt > /tmp/others.txt \
    && python3 -m pip install --no-cache-dir --no-deps -r /tmp/others.txt \
    && rm /tmp/cpu.txt /tmp/others.txt

COPY . /opt/nemo_axpo
RUN python3 -m pip install --no-cache-dir --no-deps --no-build-isolation -e /opt/nemo_axpo \
    && useradd --create-home --uid 10001 tools
USER 10001

EXPOSE 8900
ENTRYPOINT ["nemo-axpo", "tool-server"]
CMD ["tools.names=[python]", "--host", "0.0.0.0", "--port", "8900"]
