//! Asks a running taglock how it is: for images and hosts that have no other HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::StatusCode;
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::protocols::l4::stream::Stream;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;

/// Shorter than the checks of those who call this.
const PATIENCE: Duration = Duration::from_secs(4);
/// What `/readyz` tells is a few lines.
const MAX_ANSWER: usize = 64 << 10;

/// Asks the admin listener at this address, and gives its words.
pub(super) fn ask(address: SocketAddr, ready: bool) -> Result<String, Failure> {
    let path = if ready { "/readyz" } else { "/healthz" };
    let address = reachable(address);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Start(e.to_string()))?;
    let asked = runtime.block_on(async { timeout(PATIENCE, get(address, path)).await });
    match asked {
        Ok(Ok((StatusCode::OK, text))) => Ok(text),
        Ok(Ok((status, text))) => {
            Err(Failure::Start(format!("http://{address}{path} answers {status}:\n{text}")))
        }
        Ok(Err(error)) => {
            Err(Failure::Start(format!("http://{address}{path} can't be asked: {error}")))
        }
        Err(_) => Err(Failure::Start(format!("http://{address}{path} does not answer in time"))),
    }
}

/// A listener on every address is asked on the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn get(
    address: SocketAddr,
    path: &str,
) -> Result<(StatusCode, String), Box<dyn std::error::Error>> {
    // The admin listener speaks plain HTTP.
    let stream = Stream::from(TcpStream::connect(address).await?);
    let mut session = HttpSession::new(Box::new(stream));
    let mut header = RequestHeader::build("GET", path.as_bytes(), None)?;
    header.insert_header(http::header::HOST, address.to_string())?;
    session.write_request_header(Box::new(header)).await?;
    let status = session.read_resp_header_parts().await?.status;
    let mut body = Vec::new();
    while let Some(chunk) = session.read_body_bytes().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            break;
        }
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_asked_on_the_loopback() {
        for (listens, asked) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.0.0.1:3", "10.0.0.1:3")]
        {
            let [listens, asked] = [listens, asked].map(|a| a.parse::<SocketAddr>().unwrap());
            assert_eq!(reachable(listens), asked);
        }
    }
}
