//! A token service: at the registry's own host, or at another.

use http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, Uri};

use super::{Client, MAX_ANSWER, Repeat, header_value, request};
use crate::registry::{Answer, Trouble};
use crate::transport::endpoint::{Credentials, Origin, Peers};

impl Client {
    /// GET of a URL that the registry has named, with these credentials, if any, and this query.
    ///
    /// A registry that is spoken to over TLS must name one over TLS: what it says may be as secret as
    /// itself. Another host is verified by the system's roots.
    pub async fn ask_elsewhere(
        &self,
        url: &str,
        query: &str,
        credentials: Option<&HeaderValue>,
    ) -> Result<Answer, Trouble> {
        let garbage = Trouble::Garbage("its challenge names no service");
        let uri: Uri = url.parse().map_err(|_| garbage.clone())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(garbage);
        };
        let tls = match scheme {
            "https" => true,
            "http" if !self.peers.origin().tls => false,
            _ => return Err(Trouble::Garbage("its challenge names a service without TLS")),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let origin = Origin { tls, host, port };
        let mut target = uri.path_and_query().map_or("/", |pq| pq.as_str()).to_owned();
        if !query.is_empty() {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(query);
        }
        let mut headers = HeaderMap::new();
        headers.insert(HOST, header_value(&origin.authority())?);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agent = concat!("taglock/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        headers.extend(credentials.map(|credentials| (AUTHORIZATION, credentials.clone())));
        let request = request(&Method::GET, &target, &headers)?;
        if origin == *self.peers.origin() {
            return self.exchange(&self.peers, request, None, MAX_ANSWER, Repeat::Harmless).await;
        }
        let peers = Peers::new(origin, self.peers.timeouts().clone(), Credentials::default());
        self.exchange(&peers, request, None, MAX_ANSWER, Repeat::Harmless).await
    }
}
