# Two images: `serve` (no torch) and `train`. Built by BuildKit and by the classic builder alike.
#
#   docker build --target serve -t vlm2rec:serve .
#   docker build --target train -t vlm2rec:train .
#   docker build --target serve --build-arg ENGINE=gpu -t vlm2rec:serve-gpu .
#   docker build --target serve --build-arg EXTRAS="s3 kafka" -t vlm2rec:serve .
#
# The classic builder makes every stage above the target, so `serve` stands first and never waits for torch.
# Wheels in wheels/ are preferred to those of the package index: that is how a CPU build of torch gets in.

FROM python:3.11-slim-bookworm AS base
ENV PATH=/opt/vlm2rec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    VLM2REC_REGISTRY_CACHE=/var/lib/vlm2rec/cache
# The id is a number, so that Kubernetes can see that it is not root. Volumes take their owner from these directories.
RUN groupadd --gid 10001 vlm2rec \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vlm2rec \
    && install -d -o 10001 -g 10001 /var/lib/vlm2rec /var/lib/vlm2rec/bundles /var/lib/vlm2rec/state \
        /var/lib/vlm2rec/cache /var/lib/vlm2rec/runs /var/lib/vlm2rec/data /var/lib/vlm2rec/backups

# ---- what `serve` is made of
FROM base AS build-serve
ARG ENGINE=cpu
ARG EXTRAS=
WORKDIR /build
# pip and the tools of the build stay outside of the environment that is shipped.
RUN python -m venv --without-pip /opt/vlm2rec \
    && python -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --disable-pip-version-check hatchling==1.33.0 cyclonedx-bom==7.5.0
COPY pyproject.toml constraints/cpu.txt constraints/gpu.txt ./
COPY wheels wheels
COPY ops/image/requirements.py .
# Arrow Flight, headers and tests are a tenth of what would be installed; nothing here loads them.
# The dependencies are a layer of their own: it is made again only when they change, not with every line of code.
RUN python requirements.py "$ENGINE" $(test "$ENGINE" != gpu || echo cuda) $EXTRAS > requirements.txt \
    && /opt/tools/bin/pip --python /opt/vlm2rec/bin/python install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --find-links wheels --constraint "$ENGINE.txt" --requirement requirements.txt \
    && cd /opt/vlm2rec/lib/python3*/site-packages/pyarrow && rm -rf include tests *flight*
COPY README.md LICENSE ./
COPY cli cli
COPY demo demo
COPY index index
COPY service service
COPY training training
RUN /opt/tools/bin/pip wheel --disable-pip-version-check --no-deps --no-index --no-build-isolation --wheel-dir dist . \
    && /opt/tools/bin/pip --python /opt/vlm2rec/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --no-index dist/*.whl \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible --output-file /opt/vlm2rec/sbom.cdx.json \
        /opt/vlm2rec/bin/python

FROM base AS serve
COPY --from=build-serve /opt/vlm2rec /opt/vlm2rec
ENV VLM2REC_HOST=0.0.0.0 \
    VLM2REC_PORT=8000 \
    VLM2REC_REGISTRY=/var/lib/vlm2rec/bundles \
    VLM2REC_DIRECTIVES_FILE=/var/lib/vlm2rec/state/directives.json
USER 10001:10001
WORKDIR /var/lib/vlm2rec
EXPOSE 8000
# Bash instead of a Python interpreter every five seconds; Debian's image has no curl. `--start-interval` is unknown to the
# classic builder.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/$VLM2REC_PORT && printf 'GET /readyz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r -t 2 _ status _ <&3 && mapfile -u 3 && test \"$status\" = 200"]
ENTRYPOINT ["vlm2rec"]
CMD ["serve"]

# ---- what `train` is made of
FROM build-serve AS build-train
ARG ENGINE=cpu
ARG EXTRAS=
RUN python requirements.py "$ENGINE" $EXTRAS train > requirements.txt \
    && /opt/tools/bin/pip --python /opt/vlm2rec/bin/python install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --find-links wheels --constraint "$ENGINE.txt" --requirement requirements.txt \
    && (cd /opt/vlm2rec/lib/python3*/site-packages/torch && rm -rf include test) \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible --output-file /opt/vlm2rec/sbom.cdx.json \
        /opt/vlm2rec/bin/python

FROM base AS train
COPY --from=build-train /opt/vlm2rec /opt/vlm2rec
COPY ops/jobs /opt/jobs
# Caches of the libraries; also where a hub model is kept, so mount a volume to download it once.
ENV HOME=/var/lib/vlm2rec/runs/.home \
    HF_HOME=/var/lib/vlm2rec/runs/.home/huggingface
USER 10001:10001
WORKDIR /var/lib/vlm2rec
ENTRYPOINT ["vlm2rec"]
CMD ["--help"]
