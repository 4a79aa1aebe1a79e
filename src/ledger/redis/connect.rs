//! How one server is spoken to: its address, and everything but its address.

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, io::tcp::TcpSettings,
};

/// A Redis on the same network answers in less than a millisecond.
pub(super) const CONNECT: Duration = Duration::from_secs(1);
pub(super) const ANSWER: Duration = Duration::from_secs(1);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Who vouches for the servers, and who we are to them; PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// Instead of the system's authorities.
    pub authorities: Option<Vec<u8>>,
    /// Certificate and key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// Credentials, database and TLS. They are never shown.
#[derive(Clone)]
pub struct Access {
    settings: RedisConnectionInfo,
    tls: Option<Tls>,
}

impl Access {
    /// `tls` is `None` for connections without it.
    pub fn new(tls: Option<Tls>) -> Self {
        // `CLIENT SETINFO` would only be one more thing a user needs to be allowed.
        Self { settings: RedisConnectionInfo::default().set_skip_set_lib_name(), tls }
    }

    /// From `redis://` or `rediss://`, credentials and database within.
    ///
    /// # Errors
    /// When the URL is none of a Redis.
    pub fn of_url(url: &str, tls: Tls) -> RedisResult<(Address, Self)> {
        let info = url.into_connection_info()?;
        let (address, tls) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (Address { host: host.clone(), port: *port }, None),
            ConnectionAddr::TcpTls { host, port, .. } => {
                (Address { host: host.clone(), port: *port }, Some(tls))
            }
            _ => return Err((ErrorKind::InvalidClientConfig, "not an address").into()),
        };
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        Ok((address, Self { settings, tls }))
    }

    #[must_use]
    pub fn with_login(mut self, username: Option<&str>, password: Option<&str>) -> Self {
        if let Some(username) = username {
            self.settings = self.settings.set_username(username);
        }
        if let Some(password) = password {
            self.settings = self.settings.set_password(password);
        }
        self
    }

    #[must_use]
    pub fn with_database(mut self, database: u16) -> Self {
        self.settings = self.settings.set_db(database.into());
        self
    }

    pub(super) fn client(&self, address: &Address) -> RedisResult<Client> {
        let Address { host, port } = address.clone();
        let addr = match &self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let info = addr
            .into_connection_info()?
            .set_redis_settings(self.settings.clone())
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let Some(tls) = &self.tls else { return Client::open(info) };
        let client_tls = tls.client.clone();
        let client_tls =
            client_tls.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: tls.authorities.clone() };
        Client::build_with_tls(info, certificates)
    }
}

/// A connection, whatever the server is; `patience` bounds each answer.
pub(super) async fn connect(
    client: &Client,
    patience: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        // Names, TLS and credentials are within it.
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(patience));
    client.get_multiplexed_async_connection_with_config(&config).await
}
