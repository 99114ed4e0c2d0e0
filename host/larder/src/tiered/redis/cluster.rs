//! The connections to the servers of a Cluster: the crate makes them, and again those that break.
//!
//! Those that go silent it keeps, as `single.rs` tells. So a call that ends without an answer leaves a `PING` behind here, too, on the
//! same way. Where that finds nobody, all connections are made anew beside the old ones, and take their place if they answer
//! there: a server that is down costs the others nothing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::cluster::{ClusterClient, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::SingleNodeRoutingInfo;
use redis::{Pipeline, RedisError, RedisResult, Value};
use tokio::runtime::Handle;

/// See the module's documentation. A clone is the same.
#[derive(Clone)]
pub(super) struct Cluster(Arc<Inner>);

struct Inner {
    client: ClusterClient,
    /// How long connecting, and an answer, may take.
    timeout: Duration,
    connection: Mutex<ClusterConnection>,
    /// Held while a `PING` is under way: one asks for all.
    asks: Arc<tokio::sync::Mutex<()>>,
}

fn connect(client: &ClusterClient, timeout: Duration) -> ClusterConnection {
    let config = ClusterConfig::new().set_connection_timeout(timeout).set_response_timeout(timeout);
    client.get_pending_async_connection_with_config(config)
}

async fn send(
    connection: ClusterConnection,
    commands: &Pipeline,
    way: &SingleNodeRoutingInfo,
) -> RedisResult<Vec<Value>> {
    let mut connection = connection;
    connection.route_pipeline(commands.clone(), 0, commands.len(), way.clone()).await
}

impl Cluster {
    pub(super) fn new(client: ClusterClient, timeout: Duration) -> Self {
        let connection = Mutex::new(connect(&client, timeout));
        Cluster(Arc::new(Inner { client, timeout, connection, asks: Arc::default() }))
    }

    /// Sends commands, in one write; their answers.
    pub(super) async fn send(&self, commands: &Pipeline, way: &SingleNodeRoutingInfo) -> RedisResult<Vec<Value>> {
        let mut call = Call { cluster: self, way, is_over: false };
        let connection = self.0.connection.lock().clone();
        let answers = send(connection, commands, way).await;
        call.is_over = !answers.as_ref().is_err_and(RedisError::is_timeout);
        answers
    }

    /// Asks for a sign of life on a way, and has new connections where there is none.
    fn ask(&self, way: &SingleNodeRoutingInfo) {
        let Ok(runtime) = Handle::try_current() else { return };
        let Ok(asks) = self.0.asks.clone().try_lock_owned() else { return };
        let (this, way) = (self.clone(), way.clone());
        runtime.spawn(async move {
            let Inner { client, timeout, connection, .. } = &*this.0;
            let mut ping = Pipeline::with_capacity(1);
            ping.cmd("PING");
            let old = connection.lock().clone();
            // A refusal is a sign of life.
            if send(old, &ping, &way).await.is_err_and(|error| error.is_timeout()) {
                let new = connect(client, *timeout);
                if send(new.clone(), &ping, &way).await.is_ok() {
                    tracing::debug!("a connection to a Redis Cluster does not answer any more, and is replaced");
                    *connection.lock() = new;
                }
            }
            drop(asks);
        });
    }
}

/// A call, as in `single.rs`.
struct Call<'a> {
    cluster: &'a Cluster,
    way: &'a SingleNodeRoutingInfo,
    is_over: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.cluster.ask(self.way);
        }
    }
}
