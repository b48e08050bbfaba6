# One image for every service: the command line decides which one runs (docs/launch.md).
FROM debian:12-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements-dev.lock requirements.lock ./
RUN python3 -m venv /opt/moorage \
    && /opt/moorage/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
# The build backend, by its pinned hash, in an environment of its own that the image does not keep.
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-dev.lock
COPY . .
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels . \
    && /opt/moorage/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM debian:12-slim
# Besides Python: what mounts are made with, also those of CSI, Docker and the mount table (docs/launch.md).
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        e2fsprogs fuse3 mount python3 s3fs util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 6789 --home-dir /var/lib/moorage --create-home moorage
COPY --from=build /opt/moorage /opt/moorage
ENV PATH=/opt/moorage/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MOORAGE_DATA_DIR=/var/lib/moorage \
    MOORAGE_PORT=7070 \
    MOORAGE_HTTP_PORT=7071
USER 6789
VOLUME /var/lib/moorage
EXPOSE 7070 7071
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["moorage", "health"]
ENTRYPOINT ["moorage"]
CMD ["host"]
