//! A read whose answer is passed on as it comes, by whoever asked.

use std::sync::Arc;

use http::StatusCode;
use pingora::ErrorType::{ConnectError, ConnectTimedout, H1Error};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1;
use pingora::{Error, Result};
use tokio::time::Instant;

use super::{Client, MAX_ADDRESSES, trouble_of};
use crate::registry::Trouble;
use crate::registry::framing::{check_early, settle};
use crate::runtime::timer::{Clock, Time};
use crate::transport::endpoint::Way;
use crate::transport::pool::Home;

/// An answer of which only the header was read.
pub struct Opened {
    pub header: ResponseHeader,
    /// The informational answers (1xx) that came before it.
    pub early: Vec<ResponseHeader>,
    session: v1::client::HttpSession,
    way: Arc<Way>,
    /// Nothing else is asked for on this connection.
    last: bool,
}

impl Opened {
    /// The connection is not kept, as what was asked with did not all go out.
    pub fn at_last(self) -> Self {
        Self { last: true, ..self }
    }

    /// What has come of the body, or comes next; `None` at its end.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn chunk(&mut self) -> Result<Option<&[u8]>> {
        self.session.read_body_ref().await.map_err(Error::into_up)
    }

    /// The connection, from which the rest of a body can be taken that has a length.
    pub fn stream(&self) -> &Stream {
        self.session.stream()
    }
}

/// A request of which the header was sent.
pub struct Begun {
    session: v1::client::HttpSession,
    way: Arc<Way>,
    /// Informational answers so far.
    early: usize,
}

impl Begun {
    /// The connection, to which a body can be written that has a length.
    pub fn stream(&self) -> &Stream {
        self.session.stream()
    }

    /// The header of the next answer: informational ones (1xx) come before the last.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn answer(&mut self) -> Result<ResponseHeader> {
        self.session.read_response().await.map_err(Error::into_up)?;
        let header = self.session.resp_header().cloned();
        let header = header.ok_or_else(|| Error::explain(H1Error, "no header").into_up())?;
        self.early += usize::from(is_early(&header));
        check_early(self.early)?;
        Ok(header)
    }

    /// With the header of the last answer.
    pub fn opened(self, header: ResponseHeader, early: Vec<ResponseHeader>) -> Opened {
        let Self { session, way, .. } = self;
        Opened { header, early, session, way, last: false }
    }
}

/// Whether another answer follows. Nobody asks to switch protocols, so that is the last one here.
pub fn is_early(header: &ResponseHeader) -> bool {
    header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS
}

/// The header of the final answer, once it is fit to be passed on.
pub(super) async fn read_header(session: &mut HttpSession) -> Result<ResponseHeader> {
    let mut early = 0;
    loop {
        session.read_response_header().await?;
        match session.response_header() {
            Some(header) if is_early(header) => {
                early += 1;
                check_early(early)?;
            }
            Some(header) => {
                let mut header = header.clone();
                settle(&mut header)?;
                return Ok(header);
            }
            None => return Error::e_explain(H1Error, "no header"),
        }
    }
}

impl Client {
    /// Sends a request without a body that may be repeated, and reads the answer's header.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn open(&self, request: &RequestHeader) -> Result<Opened> {
        let read = async |mut begun: Begun| {
            let mut early = Vec::new();
            loop {
                match begun.answer().await? {
                    header if is_early(&header) => early.push(header),
                    header => return Ok(begun.opened(header, early)),
                }
            }
        };
        self.attempt(request, read).await
    }

    /// Sends the header of a request whose body follows.
    ///
    /// # Errors
    /// Where it could not be sent.
    pub async fn begin(&self, request: &RequestHeader) -> Result<Begun> {
        self.attempt(request, async |begun| Ok(begun)).await
    }

    /// Sends the header to one address after the other, and goes on from there. Only where a kept
    /// connection turns out to be dead is it done again.
    async fn attempt<T>(
        &self,
        request: &RequestHeader,
        go_on: impl AsyncFn(Begun) -> Result<T>,
    ) -> Result<T> {
        loop {
            let mut clock = Clock::default();
            let connected = self.connection(&self.home(), &mut clock.freely()).await;
            let (stream, way, reused) = connected?;
            let session = v1::client::HttpSession::new_with_options(stream, &way.peer);
            let sent = self.send(session, way, request.clone()).await;
            let result = match sent {
                Ok(begun) => go_on(begun).await,
                Err(error) => Err(error),
            };
            match result {
                // The pool may hold several dead connections; each is tried once and gone.
                Err(error) if reused && trouble_of(&error) == Trouble::Cut => {}
                other => return other.map_err(Error::into_up),
            }
        }
    }

    /// Where the connections are kept of the runtime this is called in.
    pub fn home(&self) -> Home {
        self.connections.home()
    }

    /// A connection, and whether it has served a request before: to one address of the registry after
    /// the other.
    pub(super) async fn connection(
        &self,
        home: &Home,
        time: &mut Time<'_>,
    ) -> Result<(Stream, Arc<Way>, bool)> {
        let late = |late| Error::because(ConnectTimedout, "it", late).into_up();
        let mut addresses = 1;
        loop {
            let way = time.left(self.peers.way()).await.map_err(late)?;
            let way =
                way.map_err(|trouble| Error::explain(ConnectError, trouble.to_string()).into_up())?;
            let now = time.now();
            let taking = self.connections.take_stream(&way, home, now);
            match time.left(taking).await.map_err(late)? {
                Ok((stream, reused)) => return Ok((stream, way, reused)),
                Err(_) if addresses < MAX_ADDRESSES => {
                    self.peers.shun(&way.peer);
                    addresses += 1;
                }
                Err(error) => return Err(error.into_up()),
            }
        }
    }

    async fn send(
        &self,
        mut session: v1::client::HttpSession,
        way: Arc<Way>,
        request: RequestHeader,
    ) -> Result<Begun> {
        let timeouts = self.peers.timeouts();
        session.read_timeout = Some(timeouts.read);
        session.write_timeout = Some(timeouts.write);
        session.write_request_header(Box::new(request)).await?;
        Ok(Begun { session, way, early: 0 })
    }

    /// Keeps the connection of an answer that was read to its end through [`Opened::chunk`].
    pub async fn close(&self, opened: Opened) {
        let Opened { session, way, last, .. } = opened;
        if last {
            return;
        }
        let idle = self.peers.timeouts().idle;
        self.connections.give_back(HttpSession::H1(session), &way, idle).await;
    }

    /// Keeps the connection of an answer whose body was taken from its stream, to the last byte.
    pub fn close_emptied(&self, opened: Opened) {
        let Opened { mut session, way, .. } = opened;
        session.respect_keepalive();
        if session.will_keepalive() {
            let idle = self.peers.timeouts().idle;
            self.home().keep(session.into_inner(), &way, Instant::now(), idle);
        }
    }
}
