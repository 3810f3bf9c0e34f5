# syntax=docker/dockerfile:1
# One image for every distune service. PyPI's torch is the CUDA build and runs on a CPU as well.

FROM python:3.11-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/distune
ENV PATH=/opt/distune/bin:$PATH
WORKDIR /src

# Gigabytes of dependencies, a layer of their own: built again when these two files change, not with every edit.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    > requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --requirement requirements.txt

COPY LICENSE README.md ./
COPY storage ./storage
COPY trainer ./trainer
COPY search ./search
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps . && pip check && pip uninstall --yes pip


FROM python:3.11-slim-trixie
LABEL org.opencontainers.image.title="distune" \
      org.opencontainers.image.description="Hyperparameter search for distilling a large speech recogniser into a small one" \
      org.opencontainers.image.licenses="Apache-2.0"

# New volumes take owner and mode from these folders. Anyone may write the two shared ones, as in /tmp: the user id may
# be another (DISTUNE_UID in docker-compose.yml).
RUN groupadd --gid 10001 distune \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin distune \
    && install --directory --mode 1777 /cache /gpu-locks \
    && install --directory --owner 10001 --group 10001 /runs

COPY --from=build /opt/distune /opt/distune

# The root file system is read-only in docker-compose.yml: what libraries keep under HOME goes to a tmpfs. USER names
# the user for libraries that ask, also where the id has no passwd entry.
ENV PATH=/opt/distune/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=distune \
    HF_HOME=/cache/huggingface

WORKDIR /
USER 10001:10001
ENTRYPOINT ["distune"]
CMD ["--help"]
