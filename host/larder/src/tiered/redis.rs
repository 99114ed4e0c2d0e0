//! Redis (and Valkey, ElastiCache, MemoryDB, Redis Cloud, Upstash, Dragonfly: whatever speaks its protocol and runs scripts):
//! one server or a Cluster, with TLS and ACL. [`RedisServer`] says where it is; [`RedisTier`] is a tier in it, and [`RedisBus`] a
//! bus through it.
//!
//! The protocol, TLS and the routes of a Cluster are the `redis` crate's. There is one connection for each server,
//! shared by all calls: Redis answers in order, so calls that are under way at once cost no more round trips than one.

mod bus;
mod cluster;
mod single;
mod tier;

use std::sync::Arc;
use std::time::Duration;

use redis::cluster::ClusterClientBuilder;
use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, ProtocolVersion,
    RedisError, RedisResult, ServerErrorKind, TlsCertificates, Value,
};

pub use bus::{RedisBus, RedisBusBuilder};
pub use tier::{RedisTier, RedisTierBuilder};

use super::{Refusal, TierError};
use cluster::Cluster;
use single::Single;

/// Why a Redis cannot be used as it was set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisSetupError {
    /// Its address cannot be understood.
    // The address is not repeated: it may hold a password.
    #[error("the address of a Redis server ({reason}): write `redis://host:port/database`, or `rediss://` for TLS")]
    Address {
        /// What is wrong.
        reason: String,
    },
    /// A name that cannot be part of a key's name.
    #[error("the prefix `{0}` of keys in Redis has a brace, which a Cluster would take for a hash tag: leave it out")]
    Prefix(String),
    /// The keys of a Cluster lie in at least one bucket.
    #[error("{0} buckets in a Redis Cluster: set from 1 to 1024, the same in every process")]
    Buckets(u16),
    /// A time that is too short or too long for what it bounds.
    #[error("`{name}` of the Redis bus is {given:?}: set it {remedy}")]
    Time {
        /// Which.
        name: &'static str,
        /// What it was.
        given: Duration,
        /// What it may be.
        remedy: &'static str,
    },
    /// It cannot be reached, or refuses.
    #[error("Redis at {at}: {reason}")]
    Unreachable {
        /// Where.
        at: String,
        /// What it or the network said.
        reason: String,
    },
}

/// Where a Redis is, and how to get in.
///
/// ```
/// use larder::tiered::RedisServer;
///
/// let server = RedisServer::at("rediss://app:secret@cache.example.com:6380/2")?;
/// // A password is never printed.
/// assert_eq!(format!("{server:?}"), "RedisServer(cache.example.com:6380)");
/// # Ok::<(), larder::tiered::RedisSetupError>(())
/// ```
#[derive(Clone)]
pub struct RedisServer {
    nodes: Vec<ConnectionInfo>,
    is_cluster: bool,
    root_certificate: Option<Vec<u8>>,
    client_certificate: Option<(Vec<u8>, Vec<u8>)>,
    timeout: Duration,
}

impl std::fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisServer({})", self.place())
    }
}

fn parsed(url: &str) -> Result<ConnectionInfo, RedisSetupError> {
    let address = |error: RedisError| RedisSetupError::Address { reason: error.to_string() };
    Ok(url.into_connection_info().map_err(address)?.set_tcp_settings(tcp_settings()))
}

/// What connections are made with. By itself the system finds after two hours that a peer is gone which it sends nothing, and after a
/// quarter of one that nobody has taken what it sends.
fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let settings = settings.set_user_timeout(Duration::from_secs(20));
    settings
}

impl RedisServer {
    /// One server: `redis://user:password@host:port/database`; `rediss://` for TLS; `unix://path`.
    ///
    /// # Errors
    /// The address cannot be understood.
    pub fn at(url: &str) -> Result<Self, RedisSetupError> {
        Ok(RedisServer {
            nodes: vec![parsed(url)?],
            is_cluster: false,
            root_certificate: None,
            client_certificate: None,
            timeout: Duration::from_secs(5),
        })
    }

    /// A Cluster, by some of its nodes; the others are found.
    ///
    /// # Errors
    /// There is none, or an address cannot be understood.
    pub fn cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisSetupError> {
        let nodes: Vec<_> = urls.into_iter().map(parsed).collect::<Result<_, _>>()?;
        if nodes.is_empty() {
            return Err(RedisSetupError::Address { reason: "a Cluster needs one at least".into() });
        }
        let timeout = Duration::from_secs(5);
        Ok(RedisServer { nodes, is_cluster: true, root_certificate: None, client_certificate: None, timeout })
    }

    /// The user and the password, where they are not in the address.
    #[must_use]
    pub fn credentials(mut self, user: Option<&str>, password: &str) -> Self {
        for node in &mut self.nodes {
            let mut settings = node.redis_settings().clone().set_password(password);
            if let Some(user) = user {
                settings = settings.set_username(user);
            }
            *node = node.clone().set_redis_settings(settings);
        }
        self
    }

    /// Trusts this certificate authority (PEM) instead of the system's.
    #[must_use]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificate = Some(pem.into());
        self
    }

    /// Shows this certificate (PEM), with its key, to the server.
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// How long connecting, and an answer, may take; 5 s if nothing is said. The limit that a cache sets is usually shorter. A connection
    /// on which a call has found no answer, and for so long after it nobody does, is replaced.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where it is, without secrets.
    fn place(&self) -> String {
        let of = |node: &ConnectionInfo| match node.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port}"),
            ConnectionAddr::Unix(path) => path.display().to_string(),
            _ => "an address".into(),
        };
        let nodes: Vec<_> = self.nodes.iter().map(of).collect();
        nodes.join(", ")
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        if self.root_certificate.is_none() && self.client_certificate.is_none() {
            return None;
        }
        let client = self.client_certificate.clone();
        Some(TlsCertificates {
            client_tls: client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: self.root_certificate.clone(),
        })
    }

    fn unreachable(&self, error: &RedisError) -> RedisSetupError {
        RedisSetupError::Unreachable { at: self.place(), reason: error.to_string() }
    }

    /// The client of one server: there is one at least, and each attempt takes the next.
    fn client(&self, attempt: usize, protocol: ProtocolVersion) -> RedisResult<Client> {
        install_tls();
        let node = self.nodes[attempt % self.nodes.len()].clone();
        let settings = node.redis_settings().clone().set_protocol(protocol);
        let node = node.set_redis_settings(settings);
        match self.certificates() {
            Some(certificates) => Client::build_with_tls(node, certificates),
            None => Client::open(node),
        }
    }

    /// A connection that is made when it is first used, and again when it breaks.
    fn link(&self) -> Result<Link, RedisSetupError> {
        let connected = || -> RedisResult<Link> {
            if self.is_cluster {
                install_tls();
                let mut builder = ClusterClientBuilder::new(self.nodes.clone())
                    .tcp_settings(tcp_settings())
                    // Of all attempts: the crate may leave a call that it wants to repeat until another one comes.
                    .overall_response_timeout(Some(self.timeout))
                    .retries(3)
                    .max_retry_wait(200)
                    .min_retry_wait(20);
                if let Some(certificates) = self.certificates() {
                    builder = builder.certs(certificates);
                }
                return Ok(Link::Cluster(Cluster::new(builder.build()?, self.timeout)));
            }
            Ok(Link::Single(Single::new(self.client(0, ProtocolVersion::RESP2)?, self.timeout)))
        };
        connected().map_err(|error| self.unreachable(&error))
    }
}

/// For TLS. Whoever installed another provider before is right, too.
fn install_tls() {
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// A connection to a server, or those to the servers of a Cluster. A clone is the same.
#[derive(Clone)]
enum Link {
    Single(Single),
    Cluster(Cluster),
}

/// To which server of a Cluster a call goes: the one that has this key.
#[derive(Clone)]
struct Way(SingleNodeRoutingInfo);

impl Way {
    /// To the keys with this hash tag, which is what is between the braces in their names.
    fn to(tag: &str) -> Self {
        Way(SingleNodeRoutingInfo::SpecificNode(Route::new(slot(tag.as_bytes()), SlotAddr::Master)))
    }
}

/// The slot of a hash tag, as the Cluster's specification has it: CRC-16 (XMODEM) modulo 16,384. The crate has it, and
/// keeps it to itself.
fn slot(tag: &[u8]) -> u16 {
    let crc = tag.iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 })
    });
    crc % 16_384
}

/// A script, and the name by which a server has it once it has run there.
struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Script { text, sha: redis::Script::new(text).get_hash().into() }
    }
}

impl Link {
    /// Sends commands, in one write; their answers.
    async fn send(&self, commands: &Pipeline, way: &Way) -> RedisResult<Vec<Value>> {
        self.send_by(commands, way).await.map(|(answers, _)| answers)
    }

    /// As [`Self::send`], and the number of the connection that brought the answers, 0 in a Cluster.
    async fn send_by(&self, commands: &Pipeline, way: &Way) -> RedisResult<(Vec<Value>, u64)> {
        let (mut answers, number) = match self {
            Link::Single(connection) => connection.send(commands).await?,
            Link::Cluster(connections) => (connections.send(commands, &way.0).await?, 0),
        };
        if answers.iter().any(|answer| matches!(answer, Value::ServerError(_))) {
            answers = answers.into_iter().map(checked).collect::<RedisResult<_>>()?;
        }
        Ok((answers, number))
    }

    /// Runs a script, the text of which goes along only where the server does not have it.
    async fn run(&self, script: &Script, way: &Way, keys: &[&str], arguments: &[&[u8]]) -> RedisResult<Value> {
        self.run_by(script, way, keys, arguments).await.map(|(answer, _)| answer)
    }

    /// As [`Self::run`], and the number of the connection, as [`Self::send_by`] has it.
    async fn run_by(
        &self,
        script: &Script,
        way: &Way,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> RedisResult<(Value, u64)> {
        let with = |command: &str, script: &str| {
            let mut sent = redis::cmd(command);
            sent.arg(script).arg(keys.len()).arg(keys).arg(arguments);
            let mut pipeline = Pipeline::with_capacity(1);
            pipeline.add_command(sent);
            pipeline
        };
        let (answers, number) = match self.send_by(&with("EVALSHA", &script.sha), way).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.send_by(&with("EVAL", script.text), way).await?
            }
            answers => answers?,
        };
        answers.into_iter().next().map(|answer| (answer, number)).ok_or_else(|| unexpected("no answer"))
    }
}

/// An answer, or the error that it is.
fn checked(answer: Value) -> RedisResult<Value> {
    if let Value::ServerError(error) = answer { Err(error.into()) } else { Ok(answer) }
}

fn unexpected(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "not an answer that was expected", what.to_string()))
}

fn failed(error: RedisError) -> TierError {
    if error.is_timeout() {
        return TierError::TimedOut;
    }
    // What an operator has to put right before anything of ours is answered again is an outage; where only some calls are
    // refused, reads mostly, the others are not held back for it.
    let (is_outage, remedy) = if error.kind() == ErrorKind::AuthenticationFailed || says(&error, "WRONGPASS") {
        (true, "set the user and the password of the server in the address, and look there whether the user is on")
    } else if says(&error, "NOAUTH") {
        (true, "set the password of the server in the address, and the user where it is not the default one")
    } else if says(&error, "READONLY") {
        (true, "this is a replica: set the address of its primary, or wait until a failover is over")
    } else if says(&error, "MOVED") || says(&error, "ASK") {
        (true, "this server belongs to a Cluster: set it up as one")
    } else if says(&error, "NOPERM") || error.to_string().contains("user executing the script can't") {
        (false, "grant the user the command and the keys: `ACL LOG` on the server says which")
    } else if says(&error, "OOM") {
        (false, "its memory is full: raise its `maxmemory`, or set a `maxmemory-policy` that evicts")
    } else {
        return TierError::Unavailable(error.to_string());
    };
    let refusal = Refusal { what: format!("{error}: {remedy}"), is_outage };
    TierError::Refused(refusal)
}

/// Whether a server's answer has this code, or word; those to a script and to a pipeline have it in their text.
fn says(error: &RedisError, code: &str) -> bool {
    let in_text = |text: &str| text.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| word == code);
    let is_servers = matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
    error.code() == Some(code) || is_servers && in_text(&error.to_string())
}

/// The bytes of an answer; `None`: nil.
fn bytes(answer: Value) -> RedisResult<Option<Vec<u8>>> {
    match answer {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        Value::SimpleString(text) => Ok(Some(text.into_bytes())),
        _ => Err(unexpected("text")),
    }
}

/// The number that an answer is, as an integer or as text; `None`: nil.
fn number(answer: Value) -> RedisResult<Option<u64>> {
    if let Value::Int(number) = answer {
        return u64::try_from(number).map(Some).map_err(|_| unexpected("a number"));
    }
    let Some(text) = bytes(answer)? else { return Ok(None) };
    let text = std::str::from_utf8(&text).ok();
    text.and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| unexpected("a number"))
}

fn array(answer: Value) -> RedisResult<Vec<Value>> {
    if let Value::Array(answers) = answer { Ok(answers) } else { Err(unexpected("a list")) }
}

/// 64 bits that nobody else has.
fn unique() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(std::process::id())
}

/// Text for messages.
fn summary_of(server: &RedisServer) -> Arc<str> {
    let kind = if server.is_cluster { "Redis Cluster" } else { "Redis" };
    format!("{kind} at {}", server.place()).into()
}

#[cfg(test)]
mod tests {
    use super::slot;

    #[test]
    fn the_slots_of_the_specification() {
        // The vector of its appendix, and those that `CLUSTER KEYSLOT` answers.
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"bar"), 5_061);
    }
}
