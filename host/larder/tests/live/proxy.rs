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
    pub wire: watch::Sender<Wire>,
}

impl Proxy {
    /// To a server, on any port.
    pub async fn to(port: u16) -> Self {
        Self::at(0, port).await
    }

    /// To a server.
    pub async fn at(own: u16, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let proxy = Proxy { port: listener.local_addr().unwrap().port(), wire: watch::Sender::new(Wire::Whole) };
        let wire = proxy.wire.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut wire = wire.clone();
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
                            Wire::Whole => tokio::select! {
                                _ = copy_bidirectional(&mut near, &mut far) => return,
                                _ = changed => {}
                            },
                        }
                    }
                });
            }
        });
        proxy
    }
}
