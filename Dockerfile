# Turnout in a container: `make image`, or `docker build -t turnout .`
#
#   docker run --init -v ./turnout.toml:/etc/turnout/turnout.toml:ro -v turnout-state:/var/lib/turnout \
#       -p 6432:6432 -p 6033:6033 turnout
#
# The config's `state_file` and `runtime_dir` belong below /var/lib/turnout, and its listeners on 0.0.0.0. Other commands go
# after the name, `docker run … turnout check /etc/turnout/turnout.toml`, or into the running container, where the control
# port is on its loopback: `docker exec … turnout status`. `--init` reaps what a hook may leave behind. `docker stop -t 20`:
# sessions have ten seconds to end their transactions.
#
# To reach the control port from outside (-p 7432:7432) the config has to give it TLS and callers. Then the health check, which
# asks from inside, wants `-e READY_URL=https://127.0.0.1:7432/readyz`. It looks at no certificate, and has none to show: where
# every caller needs one, `--no-healthcheck`.
#
# How this file is checked where there is no container engine: tools/check_image.sh runs its RUN and COPY lines in a
# clean root made by debootstrap, then starts the entry point in it as the image's user.

FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev libssl-dev libzstd-dev python3-dev python3-venv zlib1g-dev
COPY . /src
RUN python3 -m venv /opt/turnout
RUN /opt/turnout/bin/pip wheel --no-cache-dir --no-deps -w /wheels /src
RUN /opt/turnout/bin/pip install --no-cache-dir /wheels/turnout-*.whl && /opt/turnout/bin/pip uninstall -y pip setuptools

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libssl3 libzstd1 python3 zlib1g && rm -rf /var/lib/apt/lists/*
RUN groupadd --system --gid 65532 turnout && useradd --system --uid 65532 --gid 65532 --home-dir /var/lib/turnout --create-home --shell /usr/sbin/nologin turnout
COPY --from=build /opt/turnout /opt/turnout
ENV PATH=/opt/turnout/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 READY_URL=http://127.0.0.1:7432/readyz
# By number: Kubernetes' runAsNonRoot believes no name.
USER 65532:65532
WORKDIR /var/lib/turnout
VOLUME /var/lib/turnout
# PostgreSQL, MySQL, control
EXPOSE 6432 6033 7432
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; c = ssl.create_default_context(); c.check_hostname, c.verify_mode = False, ssl.CERT_NONE; r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=c)).open(os.environ['READY_URL'], timeout=3)"]
ENTRYPOINT ["turnout"]
CMD ["serve", "/etc/turnout/turnout.toml"]
