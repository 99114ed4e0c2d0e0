//! The connection to one server: made when it is first used, and again when it breaks.
//!
//! The `redis` crate's `ConnectionManager` does that, too, and does not say when: who must know which connection has answered, as the
//! tier must, then asks the server for a name with each read. Here each connection has a number. What a connection *is* (the protocol,
//! TLS, many calls at once, time-outs) is the crate's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisResult, Value};
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
        Single(Arc::new(Inner { client, config, connection: Mutex::new(Numbered { number: 1, made: None }) }))
    }

    /// Sends commands, in one write; their answers, and the number of the connection that brought them.
    pub(super) async fn send(&self, commands: &Pipeline) -> RedisResult<(Vec<Value>, u64)> {
        let (connection, number) = self.connection().await;
        let answers = match connection {
            Ok(mut connection) => connection.req_packed_commands(commands, 0, commands.len()).await,
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that hangs up at once while it is told to, and else answers all that comes with `PONG`. How many came.
    async fn server(hangs_up: Arc<AtomicUsize>) -> (Single, Arc<AtomicUsize>) {
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
}
