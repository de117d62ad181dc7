# docker build -t unified_se_ss . && docker run --rm -v "$PWD/results:/app/results" unified_se_ss
# With GPUs: docker run --gpus all --shm-size 8g …; another command behind the image's name.
FROM python:3.12-slim

# git: env.log of a run names the commit; make: the two commands
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
# What is installed changes seldom, so it is a layer of its own.
COPY requirements-lock.txt requirements.txt setup.py pyproject.toml README.md Makefile ./
COPY scripts/ scripts/
COPY unified_se_ss/__init__.py unified_se_ss/
ENV PIP_NO_CACHE_DIR=1
RUN make install
COPY . .
RUN touch .venv/installed

CMD ["make", "demo"]
