//! A client that keeps its connection, as real ones do.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::{INDEX, OCI};
use crate::http::{self, Answer};

pub struct Pusher {
    address: String,
    reader: BufReader<TcpStream>,
}

impl Pusher {
    pub fn connect(address: &str) -> Self {
        let reader = BufReader::new(http::connect(address).unwrap());
        Self { address: address.to_owned(), reader }
    }

    /// PUTs a manifest and returns how long the answer, a 201, took.
    pub fn put(&mut self, repository: &str, reference: &str, manifest: &[u8]) -> Duration {
        let (answer, time) =
            self.send("PUT", repository, reference, &[("Content-Type", INDEX)], manifest);
        assert_eq!(answer.status, 201, "{reference}: {}", answer.text());
        time
    }

    /// What a judged push of a new tag asks the registry for, sent here without a proxy.
    pub fn put_as_judged(
        &mut self,
        repository: &str,
        tag: &str,
        digest: &str,
        manifest: &[u8],
    ) -> Duration {
        let mut whole = self.head(repository, tag, 404);
        whole += self.put(repository, digest, manifest);
        whole += self.head(repository, tag, 404);
        whole += self.head(repository, digest, 200);
        whole + self.put(repository, tag, manifest)
    }

    fn head(&mut self, repository: &str, reference: &str, status: u16) -> Duration {
        let accept = format!("{OCI}, {INDEX}");
        let (answer, time) = self.send("HEAD", repository, reference, &[("Accept", &accept)], b"");
        assert_eq!(answer.status, status, "{reference}");
        time
    }

    fn send(
        &mut self,
        method: &str,
        repository: &str,
        reference: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (Answer, Duration) {
        let target = format!("/v2/{repository}/manifests/{reference}");
        let bytes = http::bytes(&self.address, method, &target, headers, body);
        let start = Instant::now();
        self.reader.get_mut().write_all(&bytes).unwrap();
        let answer = http::read_answer(&mut self.reader, method == "HEAD").unwrap();
        (answer, start.elapsed())
    }
}
