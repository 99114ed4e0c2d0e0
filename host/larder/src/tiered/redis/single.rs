//! The connection to one server: made when it is first used, and again when it breaks.
//!
//! The `redis` crate's `ConnectionManager` does that, too, and does not say when: who must know which connection has answered, as the
//! tier must, then asks the server for a name with each read. Here each connection has a number. What a connection *is* (the protocol,
//! TLS, many calls at once, time-outs) is the crate's.
//!
//! **A connection that went silent** (a peer that is gone without a word, a balancer that has forgotten it) is no error to the crate:
//! each call on it ends by its own time, or its caller's. So a call that ends without an answer leaves a `PING` behind ([`Call`]). A
//! server that is only slow answers that, too, for Redis answers in order, and the connection stays; one on which nothing comes
//! within the time that an answer may take is replaced.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;

/// A server is tried so often before those who wait are told that it cannot be reached.
const ATTEMPTS: u32 = 3;
/// The pause after the first attempt; each later one is twice as long.
const PAUSE: Duration = Duration::from_millis(20);

/// See the module's documentation. A clone is the same.
#[derive(Clone)]
pub(super) struct Single(Arc<Inner>);

struct Inner {
    client: Client,
    config: AsyncConnectionConfig,
    connection: Mutex<Numbered>,
    /// Held while a `PING` is under way: one asks for all.
    asks: Arc<tokio::sync::Mutex<()>>,
}

/// The connection that is there, or is being made: all who want one wait for the same.
struct Numbered {
    number: u64,
    made: Option<watch::Receiver<Option<RedisResult<MultiplexedConnection>>>>,
}

impl Single {
    pub(super) fn new(client: Client, timeout: Duration) -> Self {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
        let connection = Mutex::new(Numbered { number: 1, made: None });
        Single(Arc::new(Inner { client, config, connection, asks: Arc::default() }))
    }

    /// Sends commands, in one write; their answers, and the number of the connection that brought them.
    pub(super) async fn send(&self, commands: &Pipeline) -> RedisResult<(Vec<Value>, u64)> {
        let (connection, number) = self.connection().await;
        let answers = match connection {
            Ok(connection) => {
                let mut call = Call { single: self, connection, number, is_over: false };
                let answers = call.connection.req_packed_commands(commands, 0, commands.len()).await;
                call.is_over = !answers.as_ref().is_err_and(RedisError::is_timeout);
                answers
            }
            Err(error) => Err(error),
        };
        match answers {
            Ok(answers) => Ok((answers, number)),
            Err(error) => {
                if error.is_unrecoverable_error() {
                    self.lose(number);
                }
                Err(error)
            }
        }
    }

    /// Asks for a sign of life on a connection, and gives it up where there is none.
    fn ask(&self, mut connection: MultiplexedConnection, number: u64) {
        let Ok(runtime) = Handle::try_current() else { return };
        let Ok(asks) = self.0.asks.clone().try_lock_owned() else { return };
        let this = self.clone();
        runtime.spawn(async move {
            let answer = connection.req_packed_command(&redis::cmd("PING")).await;
            // A refusal is a sign of life.
            if answer.is_err_and(|error| error.is_timeout() || error.is_unrecoverable_error()) {
                tracing::debug!("a connection to Redis does not answer any more, and is replaced");
                this.lose(number);
            }
            drop(asks);
        });
    }

    async fn connection(&self) -> (RedisResult<MultiplexedConnection>, u64) {
        let (number, mut made) = {
            let mut connection = self.0.connection.lock();
            let number = connection.number;
            let made = connection.made.get_or_insert_with(|| self.make(number));
            if let Some(Ok(made)) = &*made.borrow() {
                return (Ok(made.clone()), number);
            }
            (number, made.clone())
        };
        let made = match made.wait_for(Option::is_some).await {
            Ok(made) => made.clone(),
            Err(_) => None,
        };
        let gone =
            || Err(io::Error::new(io::ErrorKind::NotConnected, "the runtime that was connecting is gone").into());
        (made.unwrap_or_else(gone), number)
    }

    /// Begins to make a connection. A task of its own does: callers whose time is up take no part of it with them.
    fn make(&self, number: u64) -> watch::Receiver<Option<RedisResult<MultiplexedConnection>>> {
        let (tell, made) = watch::channel(None);
        let this = self.clone();
        tokio::spawn(async move {
            let Inner { client, config, .. } = &*this.0;
            let mut connected = client.get_multiplexed_async_connection_with_config(config).await;
            for attempt in 1..ATTEMPTS {
                if connected.is_ok() {
                    break;
                }
                sleep(PAUSE * (1 << (attempt - 1))).await;
                connected = client.get_multiplexed_async_connection_with_config(config).await;
            }
            // Who comes from here on tries anew; who waited is told.
            if connected.is_err() {
                this.lose(number);
            }
            tell.send_replace(Some(connected));
        });
        made
    }

    /// The connection of this number is of no more use.
    fn lose(&self, number: u64) {
        let mut connection = self.0.connection.lock();
        if connection.number == number {
            *connection = Numbered { number: number + 1, made: None };
        }
    }
}

/// A call on a connection. One that ends without an answer, because that took too long or because its caller left, asks whether
/// there is still anybody.
struct Call<'a> {
    single: &'a Single,
    connection: MultiplexedConnection,
    number: u64,
    is_over: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.single.ask(self.connection.clone(), self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use tokio::time::timeout;

    use super::*;

    /// A server that hangs up at once while it is told to, and else answers all that comes with `PONG`. How many came.
    async fn server(hangs_up: Arc<AtomicUsize>) -> (Single, Arc<AtomicUsize>) {
        server_that_takes(Duration::ZERO, hangs_up).await
    }

    async fn server_that_takes(time: Duration, hangs_up: Arc<AtomicUsize>) -> (Single, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::open(format!("redis://{}", listener.local_addr().unwrap())).unwrap();
        let came = Arc::new(AtomicUsize::new(0));
        let counted = came.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, SeqCst);
                let hangs_up = hangs_up.clone();
                tokio::spawn(async move {
                    let mut asked = [0; 1024];
                    while hangs_up.load(SeqCst) == 0 {
                        let Ok(bytes @ 1..) = stream.read(&mut asked).await else { break };
                        // A command is an array, which begins with a star.
                        let commands = asked[..bytes].iter().filter(|byte| **byte == b'*').count();
                        sleep(time).await;
                        drop(stream.write_all("+PONG\r\n".repeat(commands).as_bytes()).await);
                    }
                });
            }
        });
        (Single::new(client, Duration::from_secs(5)), came)
    }

    fn ping() -> Pipeline {
        let mut ping = Pipeline::new();
        ping.cmd("PING");
        ping
    }

    #[tokio::test]
    async fn who_waits_for_a_connection_waits_for_the_same() {
        let hangs_up = Arc::new(AtomicUsize::new(1));
        let (single, came) = server(hangs_up.clone()).await;
        // Callers that leave take nothing along.
        let ping_once = ping();
        for _ in 0..20 {
            tokio::select! {
                biased;
                _ = single.send(&ping_once) => panic!("nothing is connected so soon"),
                () = std::future::ready(()) => {}
            }
        }
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let single = single.clone();
                tokio::spawn(async move { single.send(&ping()).await })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap().is_err());
        }
        assert_eq!(came.load(SeqCst), ATTEMPTS as usize, "all of them were told what one task found");
        hangs_up.store(0, SeqCst);
        let (answers, number) = single.send(&ping()).await.unwrap();
        assert_eq!(answers, [Value::SimpleString("PONG".into())]);
        assert_eq!((number, came.load(SeqCst)), (2, ATTEMPTS as usize + 1));
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_another_one_afterwards() {
        let hangs_up = Arc::new(AtomicUsize::new(0));
        let (single, _) = server(hangs_up.clone()).await;
        assert_eq!(single.send(&ping()).await.unwrap().1, 1);
        assert_eq!(single.send(&ping()).await.unwrap().1, 1);
        // It answers this one, and hangs up.
        hangs_up.store(1, SeqCst);
        drop(single.send(&ping()).await);
        hangs_up.store(0, SeqCst);
        while single.send(&ping()).await.is_err() {}
        assert_eq!(single.send(&ping()).await.unwrap().1, 2);
    }

    #[tokio::test]
    async fn a_connection_that_is_only_slow_stays() {
        let (single, came) = server_that_takes(Duration::from_millis(100), Arc::default()).await;
        assert_eq!(single.send(&ping()).await.unwrap().1, 1);
        for _ in 0..5 {
            assert!(timeout(Duration::from_millis(20), single.send(&ping())).await.is_err());
            // Whoever asks is done.
            drop(single.0.asks.lock().await);
        }
        assert_eq!(single.send(&ping()).await.unwrap().1, 1);
        assert_eq!(came.load(SeqCst), 1);
    }
}
