# The gateway alone, without torch. Build from the repository root:
#   docker build -f deploy/gateway.Dockerfile -t tidegate-gateway .
# Behind a mirror: --build-arg BASE_IMAGE=... --build-arg PIP_INDEX_URL=... (and PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST),
# and a CA bundle of your own as deploy/NAME.crt, or elsewhere in the context by --build-arg CA_BUNDLE=PATH.crt
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
# A pattern that may match nothing: LICENSE beside it keeps COPY content.
ARG CA_BUNDLE=deploy/*.crt
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /build
COPY LICENSE ${CA_BUNDLE} ca/
RUN python3 -m venv --without-pip /srv/venv \
    && find /etc/ssl/certs/ca-certificates.crt ca -name '*.crt' -exec cat {} + > ca.pem
ENV PIP_CERT=/build/ca.pem
# Dependencies before code: this layer is kept until one of these files changes.
COPY pyproject.toml requirements/lock.txt ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > wanted.txt \
    && python3 -m pip --python /srv/venv install -c lock.txt -r wanted.txt
# What the gateway never reads goes, half of all: names of places in other languages, and the forms of dates and numbers
# in languages that it has no messages in.
COPY locales locales
RUN find /srv/venv -path '*/pycountry/locales/*' -delete \
    && for file in /srv/venv/lib/python3.*/site-packages/babel/locale-data/*.dat; do \
         language=$(basename "$file" .dat); \
         [ "$language" = root ] || [ -d "locales/${language%%_*}" ] || rm "$file"; \
       done
COPY app app
COPY regions regions
COPY configs configs
COPY README.md LICENSE ./
# The workers' weights are of no use here.
RUN python3 -m pip --python /srv/venv install --no-deps --target /srv/tidegate . \
    && rm -r /srv/tidegate/regions/models/shipped

FROM ${BASE_IMAGE}
# A new volume takes the owner and mode of the folder that it covers.
RUN groupadd --gid 10001 tidegate && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin tidegate \
    && install -d -o tidegate -g tidegate -m 0700 /var/lib/tidegate /etc/tidegate
# Dependencies and code apart: what changes with each release is small.
COPY --from=build /srv/venv /srv/venv
COPY --from=build /srv/tidegate /srv/tidegate
ENV PATH=/srv/tidegate/bin:/srv/venv/bin:$PATH PYTHONPATH=/srv/tidegate PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/tidegate
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
ENTRYPOINT ["tidegate"]
CMD ["gateway", "--config", "/etc/tidegate/gateway.yaml", "--region", "us-east"]
