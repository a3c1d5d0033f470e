# One image for every part: `podium api`, `podium worker`, `podium migrate`, one process per container.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# requirements-otel.lock for an image that can send traces.
ARG LOCK=requirements.lock

# What is locked changes seldom, and wheels alone need no compiler.
COPY requirements.lock requirements-otel.lock requirements-build.lock ./
RUN pip install --require-hashes --only-binary=:all: -r requirements-build.lock \
    && python -m venv --without-pip /opt/podium \
    && pip --python /opt/podium/bin/python install --require-hashes --only-binary=:all: -r "$LOCK"

COPY pyproject.toml README.md LICENSE ./
COPY contracts contracts
COPY services services
COPY workers workers
COPY api api
COPY podium podium
COPY examples examples
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/podium/bin/python install --no-deps --no-index /wheels/*.whl

FROM python:3.12-slim-bookworm
RUN groupadd --system --gid 10001 podium \
    && useradd --system --uid 10001 --gid podium --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin podium
COPY --from=build /opt/podium /opt/podium
# Only this machine could reach a loopback address; to serve others the API wants PODIUM_API_KEY.
ENV PATH=/opt/podium/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PODIUM_HOST=0.0.0.0 PODIUM_LOG_FORMAT=json
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /
EXPOSE 8080
ENTRYPOINT ["podium"]
