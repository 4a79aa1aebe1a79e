//! The rest of a body that nobody wants: it is taken off the wire, or the answer before its end is lost.

use std::time::Duration;

use pingora::proxy::Session;
use tokio::time::timeout;

/// How much of it, and for how long.
const DRAIN_BYTES: usize = 8 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

pub async fn drain(session: &mut Session) {
    let reading = async {
        let mut left = DRAIN_BYTES;
        while let Ok(Some(chunk)) = session.downstream_session.read_request_body().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // A client that is still sending after that has lost its right to the answer.
    let _ = timeout(DRAIN_TIME, reading).await;
}
