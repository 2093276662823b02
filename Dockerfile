# One image for all: migrations, web server, workers, beat and the command line. See docker-compose.yml.
FROM node:24-slim AS scripts
WORKDIR /src
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev && npm run --silent build

FROM python:3.12-slim AS build
# Index with the torch wheels of your CUDA version, or with the CPU-only ones; empty takes those of the package index.
ARG TORCH_INDEX=""
WORKDIR /src
RUN python -m venv /opt/screening
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY screening/ screening/
COPY workers/ workers/
COPY migrations/ migrations/
COPY --from=scripts /src/screening/web/static/vendor/ screening/web/static/vendor/
RUN /opt/screening/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt .

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 screening && install -d -o screening -g screening /data
COPY --from=build /opt/screening /opt/screening
ENV PATH=/opt/screening/bin:$PATH SCREENING_HOME=/data PYTHONUNBUFFERED=1
USER screening
WORKDIR /data
VOLUME /data
ENTRYPOINT ["screening"]
CMD ["--help"]
