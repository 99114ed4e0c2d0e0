//! A way to a server that can be cut.
#![allow(unreachable_pub, reason = "used within these tests")]

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire {
    Whole,
    /// Connections are closed, and new ones are, too.
    Cut,
    /// Bytes stay where they are.
    Silent,
    /// As silent, and connections that have met it stay so, whatever comes after it.
    Lost,
}

/// A way to a server that can be cut.
pub struct Proxy {
    pub port: u16,
    wire: watch::Sender<Wire>,
    /// Connections that forward.
    forwarding: watch::Sender<usize>,
}

/// One of them.
struct Forwards(watch::Sender<usize>);

impl Forwards {
    fn begin(forwarding: &watch::Sender<usize>) -> Self {
        forwarding.send_modify(|connections| *connections += 1);
        Forwards(forwarding.clone())
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.0.send_modify(|connections| *connections -= 1);
    }
}

impl Proxy {
    /// To a server, on any port.
    pub async fn to(port: u16) -> Self {
        Self::at(0, port).await
    }

    /// To a server.
    pub async fn at(own: u16, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let (wire, forwarding) = (watch::Sender::new(Wire::Whole), watch::Sender::new(0));
        let proxy = Proxy { port: listener.local_addr().unwrap().port(), wire, forwarding };
        let (wire, forwarding) = (proxy.wire.subscribe(), proxy.forwarding.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut wire, forwarding) = (wire.clone(), forwarding.clone());
                tokio::spawn(async move {
                    if *wire.borrow_and_update() == Wire::Cut {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    loop {
                        let now = *wire.borrow_and_update();
                        let changed = wire.changed();
                        match now {
                            Wire::Cut => return,
                            Wire::Silent => drop(changed.await),
                            Wire::Lost => std::future::pending().await,
                            Wire::Whole => {
                                let _forwards = Forwards::begin(&forwarding);
                                tokio::select! {
                                    biased;
                                    _ = changed => {}
                                    _ = copy_bidirectional(&mut near, &mut far) => return,
                                }
                            }
                        }
                    }
                });
            }
        });
        proxy
    }

    /// Makes the way so; where it is not whole, no byte goes that way any more when this returns.
    pub async fn turn(&self, wire: Wire) {
        self.wire.send(wire).unwrap();
        if wire != Wire::Whole {
            self.forwarding.subscribe().wait_for(|connections| *connections == 0).await.unwrap();
        }
    }
}
