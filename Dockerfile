# taglock in a container: built on Debian 12, run without root.
#
#   docker build -t taglock .
#   docker run --read-only -v taglock-data:/data -v ./taglock.toml:/etc/taglock/taglock.toml:ro -p 5000:5000 taglock
#
# In the file: `listen.address = "0.0.0.0:5000"` and `ledger.path = "/data"`.

FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock rust-toolchain.toml ./
COPY src src
# The manifest names them; they are not built.
COPY benches benches
COPY tests tests
RUN cargo build --release --locked --bin taglock

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && install -d -o 65532 -g 65532 /data
COPY --from=build /src/target/release/taglock /usr/local/bin/taglock
USER 65532:65532
VOLUME /data
EXPOSE 5000
ENTRYPOINT ["/usr/local/bin/taglock"]
CMD ["serve", "--config", "/etc/taglock/taglock.toml"]
