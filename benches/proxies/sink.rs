//! The backend of uploads: takes bodies, drops them, and answers 201.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use tempfile::TempDir;

use crate::client::{discard, discard_chunks, read_head};
use crate::harness::{Process, port};

/// Tells the program that it is the sink, and where.
pub const ADDRESS: &str = "TAGLOCK_BENCH_SINK";

pub struct Sink {
    pub address: String,
    _process: Process,
    _folder: TempDir,
}

impl Sink {
    pub fn start() -> Self {
        let address = format!("127.0.0.1:{}", port());
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ADDRESS, &address);
        let mut process = Process::start("sink", command, folder.path());
        process.wait_for(&address);
        Self { address, _process: process, _folder: folder }
    }
}

pub fn run(address: &str) {
    for stream in TcpListener::bind(address).unwrap().incoming() {
        let mut stream = stream.unwrap();
        // Until the client leaves.
        thread::spawn(move || while serve(&mut stream).is_ok() {});
    }
}

fn serve(stream: &mut TcpStream) -> std::io::Result<()> {
    let (head, early) = read_head(stream)?;
    match head.length {
        Some(length) => discard(stream, length - early)?,
        // In chunks, of which the last does not come with the header.
        None => discard_chunks(stream)?,
    }
    stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
}
