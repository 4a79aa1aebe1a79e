# taglock in a container: one binary, on an image without shell or package manager, not as root.
#
#   docker build -t taglock .
#   docker run --read-only --cap-drop ALL -p 5000:5000 -v taglock-data:/data -v ./taglock:/etc/taglock:ro taglock
#
# In the folder ./taglock is the file taglock.toml, and in it `listen.address = "0.0.0.0:5000"`,
# `ledger.path = "/data"`, and `[admin]`, which the health check asks at 127.0.0.1:5080. Where the admin listener
# is elsewhere, TAGLOCK_ADMIN tells the check.

FROM rust:1.95.0-bookworm AS build
# Their versions are Debian's of the day, as the image's own.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY scripts scripts
COPY src src
# The manifest names them; they are not built.
COPY benches benches
COPY tests tests
# The same bytes as the released binary.
RUN scripts/release && install -d /image/data && install target/release/taglock /image/taglock

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/taglock /usr/local/bin/taglock
# A new volume takes its owner from here.
COPY --from=build --chown=65532:65532 /image/data /data
USER 65532:65532
VOLUME /data
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/taglock", "health"]
ENTRYPOINT ["/usr/local/bin/taglock"]
CMD ["serve", "--config", "/etc/taglock/taglock.toml"]
