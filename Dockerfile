# The gateway: `sid serve` with both engines and tracing; no torch, no compiler.
#   docker build -t sid-serve .
#   docker run -p 8000:8000 sid-serve
# More engines for SID_ENGINE (any extra of pyproject.toml): docker build --build-arg EXTRAS=openvino -t sid-serve .
# Models of your own: -v "$PWD/models:/models:ro". Settings: -e SID_...=... (docs/reference/configuration.md).
# Accepted requests may take SID_GRACE_SECONDS to finish, so stop it by `docker stop -t 30`.

FROM python:3.11.15-slim-bookworm AS dependencies
RUN python -m venv --without-pip /opt/venv
WORKDIR /src
ARG EXTRAS=
# Without the code, so that a change of it installs nothing again: what this installs of sid-serve
# is its licence, its metadata and its command. README.md need only exist.
COPY pyproject.toml LICENSE ./
# onnxruntime-gpu once more, because it and onnxruntime are one folder, and pip writes that last.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md \
    && pip --python /opt/venv/bin/python install "/src[triton,tracing${EXTRAS:+,$EXTRAS}]" \
    && /opt/venv/bin/python -c "import sys; from importlib.metadata import metadata; from re import split; unknown = set(filter(None, split('[ ,]+', sys.argv[1]))) - set(metadata('sid-serve').get_all('Provides-Extra')); sys.exit(f'EXTRAS: no such extra: {unknown}' if unknown else 0)" "$EXTRAS" \
    && case ",$EXTRAS," in *,gpu,*) pip --python /opt/venv/bin/python install --force-reinstall --no-deps onnxruntime-gpu ;; esac \
    && rm /opt/venv/bin/sid-distill

FROM python:3.11.15-slim-bookworm
LABEL org.opencontainers.image.title="SiD Serve" \
      org.opencontainers.image.description="One-step image generation over HTTP" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# The base image has its standard library without bytecode, and nothing can be written at run time:
# without this every start would compile it again.
RUN python -m compileall -q -x '/(site-packages|test|idlelib|lib2to3|tkinter)/' /usr/local/lib/python3.11
COPY --from=dependencies /opt/venv /opt/venv
COPY models /models
COPY service /opt/venv/lib/python3.11/site-packages/service
# Readable by any user, whatever the umask of the checkout was.
RUN python -m compileall -q /opt/venv/lib/python3.11/site-packages/service \
    && chmod -R a+rX /models /opt/venv/lib/python3.11/site-packages/service

# ONNX Runtime reports on its use to Microsoft unless told not to.
ENV PATH=/opt/venv/bin:$PATH \
    SID_HOST=0.0.0.0 \
    SID_MODELS=/models \
    SID_LOG_FORMAT=json \
    ORT_DISABLE_TELEMETRY=1
EXPOSE 8000
# A number, so that a platform can see that it is not root. It owns nothing and writes nothing.
USER 10001:10001
# http.client, because urllib would ask a proxy if the environment names one.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('SID_PORT', '8000')), timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["sid"]
CMD ["serve"]
