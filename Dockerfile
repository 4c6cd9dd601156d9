# Two images from one lock. `train` runs Prefect's worker, the stages and the servers of MLflow and Prefect;
# `serve` answers requests and has no torch. `make containers` executes these steps where there is no engine.

FROM python:3.11.16-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84 AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    GX_ANALYTICS_ENABLED=false \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    OMP_WAIT_POLICY=PASSIVE \
    PREFECT_SERVER_ANALYTICS_ENABLED=false
# The base image has no bytecode of the standard library, and the user below could not write any.
RUN python -m compileall -q -x 'site-packages|lib2to3|/tests?/' "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
ARG USER_ID=1000
RUN useradd --create-home --uid "$USER_ID" --shell /usr/sbin/nologin grpo

FROM base AS build
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN python -m pip install --no-cache-dir --root-user-action=ignore uv==0.13.9 \
    && uv venv /opt/venv
WORKDIR /build

FROM build AS build-train
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --python /opt/venv/bin/python --require-hashes --compile-bytecode requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY grpo_rm ./grpo_rm
COPY pipelines ./pipelines
COPY serving ./serving
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/venv/bin/python --no-deps --no-build-isolation --compile-bytecode .

FROM build AS build-serve
COPY requirements.serve.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --python /opt/venv/bin/python --require-hashes --compile-bytecode requirements.serve.lock
COPY serving /app/serving
RUN python -m compileall -q /app

FROM base AS train
# The version of git is Debian's: a pin would end with Debian's next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system safe.directory /workspace \
    && git config --system user.name grpo-rm \
    && git config --system user.email grpo-rm@localhost \
    && install --directory --owner=grpo --group=grpo /workspace
COPY --from=build-train /opt/venv /opt/venv
COPY deploy/entrypoint.sh /usr/local/bin/entrypoint.sh
# Prefect copies its UI to where it is served from: by default beside its code, where the user may not write.
ENV PREFECT_UI_STATIC_DIRECTORY=/home/grpo/prefect-ui
WORKDIR /workspace
USER $USER_ID
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
CMD ["dvc", "repro"]

FROM base AS serve
COPY --from=build-serve /opt/venv /opt/venv
COPY --from=build-serve /app /app
ENV GRPO_RM_HOST=0.0.0.0 GRPO_RM_PORT=8000
WORKDIR /app
USER $USER_ID
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['GRPO_RM_PORT'] + '/healthz', timeout=4)"]
CMD ["python", "-m", "serving"]
