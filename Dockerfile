# The server in a container, without a GPU:
#   docker build -t leeroo .
#   docker run -p 127.0.0.1:8000:8000 -v $PWD/runs/mine:/srv/leeroo/run:ro -v $PWD/pool:/srv/leeroo/pool:ro -v leeroo:/data leeroo
# pool is the directory of pool.yaml. For experts on a GPU: --build-arg UV_TORCH_BACKEND=cu130
FROM python:3.12-slim AS build
ARG UV_TORCH_BACKEND=cpu
ARG EXTRAS=contrib,math,offline,postgres,serve
WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt uv && uv venv /opt/leeroo
COPY pyproject.toml README.md LICENSE train.py ./
COPY leeroo_env ./leeroo_env
COPY experts ./experts
COPY agents ./agents
RUN uv pip install --no-cache --compile-bytecode --python /opt/leeroo/bin/python --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim
COPY --from=build /opt/leeroo /opt/leeroo
RUN useradd --system --uid 10001 --home-dir /data --create-home leeroo
ENV PATH=/opt/leeroo/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    HF_HOME=/data/huggingface \
    LEEROO_DATABASE=sqlite:////data/leeroo.db
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["leeroo", "serve", "/srv/leeroo/run", "--pool", "/srv/leeroo/pool/pool.yaml", "--host", "0.0.0.0"]
