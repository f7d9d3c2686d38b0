# docker build -t poller .
# docker run --stop-timeout 60 -p 127.0.0.1:9464:9464 -v "$PWD/poller.toml:/etc/poller/poller.toml:ro" poller
#
# In poller.toml a container wants `[daemon] listen = "0.0.0.0:9464"`: loopback inside it is out of reach of -p, of a
# Kubernetes probe and of Prometheus. Whoever reaches that port may pause mappings, so publish it to loopback or to a
# private network only. `--stop-timeout` has to be more than `[daemon] shutdown_timeout`; Docker's default is 10 s.

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY config/demo.toml config/
COPY handlers handlers
COPY poller poller
RUN python -m venv /opt/poller && /opt/poller/bin/pip install --no-cache-dir .

FROM python:3.13-slim
# A fixed number, so that a volume's owner can be set from outside.
RUN useradd --system --uid 10001 --home-dir /var/lib/poller --create-home poller
COPY --from=build /opt/poller /opt/poller
ENV PATH=/opt/poller/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
# `state = "sqlite:poller.db"` ends up here.
WORKDIR /var/lib/poller
VOLUME /var/lib/poller
EXPOSE 9464
STOPSIGNAL SIGTERM
# Directly: a proxy of the environment is not for loopback.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:9464/healthz', timeout=3)"]
# Exec form: poller is process 1 and gets the signal itself.
ENTRYPOINT ["poller"]
CMD ["run", "-c", "/etc/poller/poller.toml"]
